/**
 * Tests of the client in `clients/js` in Node: reconnects, resumes, token refreshes and errors.
 *
 * HERALD_URL and HERALD_REST belong to a gateway with an idle time-out of a second; HERALD_SECRET
 * signs its tokens.
 */

import assert from "node:assert/strict";
import { once } from "node:events";
import { test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";

import { SignJWT } from "jose";
import { WebSocket, WebSocketServer } from "ws";

import { Herald, HeraldError, expiry } from "../../clients/js/herald.js";

const { HERALD_URL: URL, HERALD_REST: REST, HERALD_SECRET: SECRET } = process.env;
const SCOPE = "ws:connect messages:send messages:broadcast users:read connections:manage";
const SOON = { firstPause: 50, longestPause: 100 };

const token = (sub, { seconds = 600, ...claims } = {}) =>
  new SignJWT({ scope: SCOPE, ...claims, sub, exp: Math.floor(Date.now() / 1000) + seconds })
    .setProtectedHeader({ alg: "HS256" })
    .sign(new TextEncoder().encode(SECRET));

const herald = async (user, options = {}) => {
  const client = new Herald(URL, { token: () => token(user), WebSocket, ...options });
  await client.connect();
  return client;
};

const detail = async (client, type) => (await once(client, type))[0].detail;

const rest = async (user, path, options = {}) =>
  fetch(REST + path, { ...options, headers: { ...options.headers, Authorization: `Bearer ${await token(user)}` } });

/** Run a server that can break the protocol. Returns its URL. */
const server = async (t, handle) => {
  const serving = new WebSocketServer({ port: 0, host: "127.0.0.1" });
  await once(serving, "listening");
  serving.on("connection", handle);
  t.after(() => {
    serving.clients.forEach((client) => client.terminate());
    serving.close();
  });
  return `ws://127.0.0.1:${serving.address().port}`;
};

test("a message is sent, reported and received", async () => {
  const [pat, ron] = [await herald("js-pat"), await herald("js-ron")];
  const received = detail(ron, "message");
  const report = await pat.send({ to: { users: ["js-ron"] }, data: { text: "Hi" } });
  assert.deepEqual([report.recipients, report.delivered, report.ref], [1, 1, undefined]);
  const message = await received;
  assert.deepEqual([message.from, message.data], ["js-pat", { text: "Hi" }]);
  assert.ok((await ron.ping()) > 0);
  pat.close();
  ron.close();
});

test("an error has the code of the refusal", async () => {
  const pat = await herald("js-pat");
  await assert.rejects(pat.join("no-group-of-mine"), (error) => {
    assert.ok(error instanceof HeraldError);
    return error.code === "forbidden" && error.details.type === "error";
  });
  pat.close();
});

test("groups are joined and left", async () => {
  const pat = await herald("js-pat", { token: token("js-pat", { groups: ["js-*"] }) });
  const message = { to: { groups: ["js-1"] }, data: 1 };
  await pat.join("js-1");
  assert.equal((await pat.send(message)).delivered, 1);
  await pat.leave("js-1");
  assert.equal((await pat.send(message)).recipients, 0);
  pat.close();
});

test("the client reconnects when the connection breaks", async () => {
  const rita = await herald("js-rita", SOON);
  const [closed, opened] = [detail(rita, "close"), detail(rita, "open")];
  assert.equal((await rest("js-rita", "/users/js-rita/connections", { method: "DELETE" })).status, 204);
  const { code, retryIn } = await closed;
  assert.equal(code, 1000);
  assert.ok(retryIn >= 0 && retryIn <= 50);
  assert.deepEqual(await opened, { again: true });
  assert.equal((await rita.send({ to: { users: ["js-rita"] }, data: 1 })).delivered, 1);
  rita.close();
});

test("no message is lost while the client reconnects", async () => {
  const sockets = [];
  class Tracked extends WebSocket {
    constructor(...options) {
      sockets.push(super(...options));
    }
  }
  const claims = { groups: ["js-team", "js-room-*"] };
  const nora = await herald("js-nora", { ...SOON, WebSocket: Tracked, token: token("js-nora", claims) });
  const [received, gaps] = [[], []];
  nora.addEventListener("message", (event) => received.push(event.detail.data));
  nora.addEventListener("resumed", (event) => event.detail.complete || gaps.push(event.detail));
  await nora.join("js-room-1");
  await nora.ping();
  const kinds = [{ users: ["js-nora"] }, { groups: ["js-team"] }, { groups: ["js-room-1"] }];
  const sent = Array.from({ length: 30 }, (_, number) => number);
  for (const number of sent) {
    const body = JSON.stringify({ to: kinds[number % 3], data: number });
    const headers = { "Content-Type": "application/json" };
    const answer = await rest("js-nora", "/messages", { method: "POST", body, headers });
    assert.equal(answer.status, 200);
    if (number % 4 === 1) sockets.at(-1).terminate();
    if (number % 6 === 1) await sleep(150);
  }
  while (received.length < sent.length) await detail(nora, "message");
  assert.deepEqual([received, gaps], [sent, []]);
  assert.ok(sockets.length > 3);
  nora.close();
});

test("an incomplete resume is reported, and messages that arrive meanwhile are held back", async (t) => {
  const frame = (...ids) =>
    JSON.stringify({ type: "messages", messages: ids.map((id) => ({ id, data: id })) });
  const asked = [];
  const url = await server(t, (socket) => {
    if (asked.length === 0) socket.send(frame("B"));
    socket.on("message", (text) => {
      const { action, after, ref } = JSON.parse(text);
      asked.push([action, after]);
      if (action === "ping") return setTimeout(() => socket.terminate(), 50);
      socket.send(frame("E"));
      socket.send(frame("C", "B"));
      const again = { type: "error", code: "unavailable", message: "", retryAfterMs: 1 };
      const done = { type: "resumed", count: 2, complete: false };
      if (asked.length > 2) socket.send(frame("D"));
      socket.send(JSON.stringify({ ...(asked.length > 2 ? done : again), ref }));
    });
  });
  const client = new Herald(url, { token: "-", WebSocket, ...SOON });
  const received = [];
  client.addEventListener("message", (event) => received.push(event.detail.data));
  client.connect();
  assert.deepEqual(await detail(client, "resumed"), { count: 2, complete: false });
  assert.deepEqual(received, ["B", "C", "D", "E"]);
  assert.deepEqual(asked, [["ping", undefined], ["resume", "B"], ["resume", "B"]]);
  client.close();
});

test("a resume is repeated when the connection is lost meanwhile", async (t) => {
  const asked = [];
  const url = await server(t, (socket) => {
    if (asked.length === 0) socket.send('{"type":"messages","messages":[{"id":"B"}]}');
    socket.on("message", (text) => {
      const { action, after, ref } = JSON.parse(text);
      asked.push([action, after]);
      if (action === "ping") return setTimeout(() => socket.terminate(), 50);
      socket.send(JSON.stringify({ type: "resumed", count: 0, complete: true, ref }));
    });
  });
  let opened = 0;
  class Unlucky extends WebSocket { // closes its second connection at once
    constructor(...parameters) {
      super(...parameters);
      this.addEventListener("open", () => ++opened === 2 && this.close());
    }
  }
  const client = new Herald(url, { token: "-", WebSocket: Unlucky, ...SOON });
  const failures = [];
  client.addEventListener("failure", (event) => failures.push(event.detail));
  client.connect();
  assert.deepEqual(await detail(client, "resumed"), { count: 0, complete: true });
  assert.deepEqual([opened, failures], [3, []]);
  assert.deepEqual(asked, [["ping", undefined], ["resume", "B"]]);
  client.close();
});

test("a group that is refused after a reconnect does not stop the resume", async (t) => {
  const asked = [];
  let connections = 0;
  const url = await server(t, (socket) => {
    connections += 1;
    socket.on("message", (text) => {
      const { action, ref } = JSON.parse(text);
      asked.push(action);
      const refused = { type: "error", code: "bad_request", message: "one too many" };
      const answers = { ping: { type: "pong", timestamp: 1 }, resume: { type: "resumed", count: 0, complete: true } };
      const answer = answers[action] ?? (connections > 1 ? refused : { type: "joined" });
      socket.send(JSON.stringify({ ...answer, ref }));
      if (action === "join" && connections === 1) socket.close();
    });
  });
  const client = new Herald(url, { token: "-", WebSocket, ...SOON });
  await client.connect();
  const [failure, resumed] = [detail(client, "failure"), detail(client, "resumed")];
  await client.join("room");
  assert.equal((await failure).code, "bad_request");
  assert.equal((await resumed).complete, true);
  assert.deepEqual(asked, ["ping", "join", "join", "resume"]);
  client.close();
});

test("pings keep a connection from being idle", async () => {
  const pat = await herald("js-pat", { pingEvery: 200 });
  const lost = detail(pat, "close");
  assert.equal(await Promise.race([lost, sleep(2500, "still there")]), "still there");
  pat.close();
  assert.equal((await lost).retryIn, null);
});

test("a token is refreshed before it expires", async () => {
  let asked = 0;
  const tess = await herald("js-tess", {
    pingEvery: 300,
    token: () => token("js-tess", { seconds: (asked += 1) === 1 ? 3 : 600 }),
  });
  const lost = detail(tess, "close");
  assert.equal(await Promise.race([lost, sleep(9000, "still there")]), "still there");
  assert.equal(asked, 2);
  await tess.send({ to: { users: ["js-tess"] }, data: 1 }); // refused with the first token
  tess.close();
});

test("a pending request fails when the connection closes", async (t) => {
  const url = await server(t, (socket) => socket.on("message", () => socket.close()));
  const client = new Herald(url, { token: "-", WebSocket, ...SOON });
  await client.connect();
  await assert.rejects(client.ping(), { code: "disconnected" });
  client.close();
  await assert.rejects(client.ping(), { code: "disconnected" });
});

test("a request without an answer times out", async (t) => {
  const client = new Herald(await server(t, () => {}), { token: "-", WebSocket, timeout: 100 });
  await client.connect();
  await assert.rejects(client.send({ to: { all: true }, data: 1 }), { code: "timeout" });
  client.close();
});

test("a connection whose pings are not answered is replaced", async (t) => {
  let opened = 0;
  const url = await server(t, () => (opened += 1));
  const client = new Herald(url, { token: "-", WebSocket, pingEvery: 50, timeout: 100, ...SOON });
  await client.connect();
  while (opened < 3) await detail(client, "open");
  client.close();
});

test("a message that arrives twice is dispatched once", async (t) => {
  const frame = (...ids) =>
    JSON.stringify({ type: "messages", messages: ids.map((id) => ({ id, data: id })) });
  const url = await server(t, (socket) => {
    for (const text of [frame("a", "b"), frame("b", "a", "c"), frame("d")]) socket.send(text);
  });
  const client = new Herald(url, { token: "-", WebSocket });
  const received = [];
  client.addEventListener("message", (event) => received.push(event.detail.data));
  client.connect();
  while (!received.includes("d")) await detail(client, "frame");
  assert.deepEqual(received, ["a", "b", "c", "d"]);
  client.close();
});

test("a token function is called again after a refusal, and `frame` events show no token", async (t) => {
  const tokens = ["nonsense", await token("js-pat")];
  const client = new Herald(URL, { token: () => tokens.shift(), WebSocket, ...SOON });
  t.after(() => client.close());
  const frames = [];
  client.addEventListener("frame", (event) => frames.push(event.detail.text));
  await client.connect();
  await client.ping();
  // The client sends a ping of its own, to set its clock; either may be answered first.
  while (frames.length < 4) await once(client, "frame");
  assert.ok(frames.every((text) => !text.includes("eyJ")));
});

test("notices are separate from messages, and an error without a request is a failure", async (t) => {
  const url = await server(t, (socket) => {
    socket.send('{"type": "notice", "code": "token_expired"}');
    socket.send('{"message": "Internal server error", "connectionId": "-", "requestId": "-"}');
  });
  const client = new Herald(url, { token: "-", WebSocket });
  const [notice, failure] = [detail(client, "notice"), detail(client, "failure")];
  await client.connect();
  assert.equal((await notice).code, "token_expired");
  assert.equal((await failure).message, "Internal server error");
  client.close();
});

test("close() stops the reconnecting and rejects connect()", async () => {
  const client = new Herald("ws://127.0.0.1:9", { token: "-", WebSocket, ...SOON });
  const connecting = client.connect();
  await detail(client, "close");
  client.close();
  await assert.rejects(connecting, { code: "closed" });
});

test("a bad URL throws at once, and each missing token is a failure", async () => {
  assert.throws(() => new Herald("nowhere", { token: "-", WebSocket }), { message: /URL/ });
  const tokens = [() => ({ token: "-" }), () => undefined, () => Promise.reject(new Error("no network"))];
  const client = new Herald("ws://127.0.0.1:9", { token: () => tokens.shift()(), WebSocket, ...SOON });
  const failures = [];
  client.addEventListener("failure", ({ detail }) => failures.push([detail.code, detail.message]));
  client.connect();
  while (tokens.length > 0) await detail(client, "close");
  client.close();
  assert.deepEqual(failures, [
    ["no_token", "no token: it is not a JWT"],
    ["no_token", "no token: it is not a JWT"],
    ["no_token", "no token: no network"],
  ]);
});

test("a failed token refresh does not end the connection", async () => {
  const tokens = [await token("js-tess", { seconds: 3 })];
  const tess = await herald("js-tess", {
    pingEvery: 300,
    token: () => tokens.shift() ?? Promise.reject(new Error("no network")),
  });
  const failure = await detail(tess, "failure");
  assert.ok(failure instanceof HeraldError);
  assert.deepEqual([failure.code, tess.connected], ["no_token", true]);
  tess.close();
});

test("the expiry is read from the token", async () => {
  const before = Date.now();
  const seconds = (expiry(await token("js-pat")) - before) / 1000;
  assert.ok(seconds > 590 && seconds <= 600);
  for (const nonsense of ["", "a.b", "a.e30.c"]) assert.equal(expiry(nonsense), Infinity);
});
