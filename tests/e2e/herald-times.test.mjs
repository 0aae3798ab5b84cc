/** Tests of when the client in `clients/js` pings and sends heartbeats, with mocked timers. */

import assert from "node:assert/strict";
import { test } from "node:test";

import { Herald } from "../../clients/js/herald.js";

const MINUTE = 60_000;
const STEP = 6_000; // a tenth of a minute

/** Answer as Herald does: a pong without a ref, everything else with it. */
const answers = ({ action, ref }) =>
  action === "ping"
    ? { type: "pong", timestamp: "1700000000000" }
    : { type: action, ref, timestamp: 1_700_000_000_000 };

/** Let promises settle. */
const settle = async () => {
  for (let turn = 0; turn < 20; turn += 1) await null;
};

/** A client of a server in this process, whose clock only moves when told to. */
class World {
  sent = []; // the client's frames, each with its minute
  opened = 0;
  #timers;
  #now = 0;

  constructor(t, answer = answers) {
    this.#timers = t.mock.timers;
    this.#timers.enable({ apis: ["setTimeout"] });
    const world = this;
    class Socket {
      readyState = 1;
      constructor() {
        world.opened += 1;
        world.socket = this;
        setTimeout(() => this.onopen(), 0);
      }
      send(text) {
        const frame = JSON.parse(text);
        world.sent.push([world.minute, frame.action]);
        const reply = answer(frame);
        if (reply) Promise.resolve().then(() => this.deliver(reply));
      }
      deliver(frame) {
        this.onmessage({ data: JSON.stringify(frame) });
      }
      close() {
        this.readyState = 3;
      }
    }
    this.client = new Herald("ws://nowhere", { token: "-", WebSocket: Socket });
  }

  get minute() {
    return Math.round(this.#now / STEP) / 10;
  }

  /** Open the connection; the client's first ping learns the server's clock. */
  async open() {
    const opened = this.client.connect();
    await settle();
    this.#timers.tick(1);
    await settle();
    await opened;
    assert.deepEqual(this.sent[0], [0, "ping"]);
  }

  /** Let minutes pass. */
  async pass(minutes) {
    for (const end = this.#now + minutes * MINUTE; this.#now < end; ) {
      this.#now += STEP;
      this.#timers.tick(STEP);
      await settle();
    }
  }

  /** The client's frames from its second one on, of some actions. */
  actions(...some) {
    return this.sent.slice(1).filter(([, action]) => some.length === 0 || some.includes(action));
  }
}

const PINGS = [1, 2, 3, 4, 5].map((number) => 9.5 * number);

test("a silent client pings after nine and a half minutes, and sends a heartbeat an hour", async (t) => {
  const world = new World(t);
  await world.open();
  await world.pass(130);
  assert.deepEqual(world.actions(), [
    ...PINGS.map((minute) => [minute, "ping"]),
    [57, "heartbeat"],
    ...PINGS.map((minute) => [minute + 57, "ping"]),
    [114, "heartbeat"],
    [123.5, "ping"],
  ]);
  assert.equal(world.opened, 1);
  world.client.close();
});

for (const direction of ["sent", "received"]) {
  test(`a frame that is ${direction} delays the ping`, async (t) => {
    const world = new World(t);
    await world.open();
    await world.pass(9);
    if (direction === "sent") await world.client.leave("room");
    else world.socket.deliver({ type: "messages", messages: [{ id: "A" }] });
    await world.pass(10);
    assert.deepEqual(world.actions("ping"), [[18.5, "ping"]]);
    world.client.close();
  });
}

test("a client that only receives sends a heartbeat after an hour", async (t) => {
  const world = new World(t);
  await world.open();
  for (let number = 0; number < 125; number += 1) {
    await world.pass(1);
    world.socket.deliver({ type: "messages", messages: [{ id: String(number) }] });
  }
  assert.deepEqual(world.actions(), [[60, "heartbeat"], [120, "heartbeat"]]);
  world.client.close();
});

test("a client that sends needs neither", async (t) => {
  const world = new World(t);
  await world.open();
  for (let number = 0; number < 30; number += 1) {
    await world.pass(9);
    await world.client.leave("room");
  }
  assert.deepEqual(world.actions("ping", "heartbeat"), []);
  world.client.close();
});

for (const code of ["bad_request", "rate_limited"]) {
  test(`a heartbeat that is refused with ${code} is ignored`, async (t) => {
    const refuse = (frame) =>
      frame.action === "ping" ? answers(frame) : { type: "error", code, message: "no", ref: frame.ref };
    const world = new World(t, refuse);
    const failures = [];
    world.client.addEventListener("failure", ({ detail }) => failures.push(detail));
    await world.open();
    await world.pass(120);
    assert.deepEqual(world.actions("heartbeat"), [[57, "heartbeat"], [114, "heartbeat"]]);
    assert.deepEqual([world.opened, failures], [1, []]);
    world.client.close();
  });
}

test("a heartbeat without an answer is followed by a ping", async (t) => {
  const world = new World(t, (frame) => frame.action === "ping" && answers(frame));
  await world.open();
  await world.pass(60);
  assert.equal(world.opened, 1);
  assert.deepEqual(world.actions().slice(-2), [[57, "heartbeat"], [57.2, "ping"]]);
  world.client.close();
});

test("a connection without a pong is replaced after the time-out", async (t) => {
  let frames = 0;
  const world = new World(t, (frame) => (frames += 1) === 1 && answers(frame));
  const lost = [];
  world.client.addEventListener("close", ({ detail }) => lost.push(detail.reason));
  await world.open();
  await world.pass(9.6);
  assert.deepEqual(lost, []);
  await world.pass(0.2);
  assert.deepEqual(lost, ["no pong"]);
  world.client.close();
});

test("a frame that arrives instead of a pong shows that the connection lives", async (t) => {
  const error = { message: "Too Many Requests", connectionId: "-", requestId: "-" };
  let frames = 0;
  const world = new World(t, (frame) => ((frames += 1) === 1 ? answers(frame) : error));
  await world.open();
  await world.pass(30);
  assert.equal(world.opened, 1);
  assert.equal(world.actions("ping").length, 3);
  world.client.close();
});

test("concurrent pings are each answered by a pong without a ref", async (t) => {
  const world = new World(t);
  await world.open();
  const trips = await Promise.all([world.client.ping(), world.client.ping(), world.client.ping()]);
  assert.ok(trips.every((trip) => trip >= 0));
  world.client.close();
});

for (const [name, pong, known] of [
  ["a number", { timestamp: 1_700_000_000_000 }, true],
  ["a string of digits", { timestamp: "1700000000000" }, true],
  ["empty", { timestamp: "" }, false],
  ["not rendered", { timestamp: "$context.requestTimeEpoch" }, false],
  ["missing", {}, false],
]) {
  test(`if a pong's time is ${name}, a heartbeat ${known ? "is not needed" : "asks for it"}`, async (t) => {
    const world = new World(t, (frame) =>
      frame.action === "ping" ? { type: "pong", ...pong } : answers(frame));
    await world.open();
    assert.deepEqual(world.actions("heartbeat"), known ? [] : [[0, "heartbeat"]]);
    world.client.close();
  });
}
