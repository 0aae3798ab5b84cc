/**
 * A client of Herald: one WebSocket that stays, in browsers and in Node.
 *
 *   const herald = new Herald("wss://…", { token: () => fetchToken() });
 *   herald.addEventListener("message", ({ detail }) => console.log(detail.from, detail.data));
 *   await herald.connect();
 *   const report = await herald.send({ to: { users: ["bob"] }, data: { text: "Hi" } });
 *
 * It connects again when the connection breaks, with growing, random pauses, and gets what it missed;
 * keeps it from being idle; brings a newer token before the old one expires; and drops a message
 * that it has seen.
 */

export const SUBPROTOCOL = "herald.v1";

const DEFAULTS = { // times in ms
  pingEvery: 8 * 60_000, // API Gateway closes what is idle for ten minutes
  timeout: 10_000, // for an answer, and for the connection
  firstPause: 500, // the longest before the first try to connect again,
  longestPause: 30_000, // and before any
  refreshBefore: 60_000, // how long before its token expires it asks for a newer one
  remembered: 10_000, // ids of messages
  WebSocket: globalThis.WebSocket, // in Node before 22: that of the package `ws`
};
const MAX_DELAY = 2 ** 31 - 1; // setTimeout fires at once beyond it

/** An answer that says no, or none at all; `code` is stable, such as `rate_limited`. */
export class HeraldError extends Error {
  constructor(code, message, details = {}) {
    super(message);
    this.name = "HeraldError";
    this.code = code;
    /** The whole error frame, such as with `retryAfterMs`. */
    this.details = details;
  }
}

/**
 * Events, each with a `detail`:
 *
 * - `open`: connected, for the first time or again: `{ again }`
 * - `message`: `{ id, type, from, timestamp, data, encrypted }`, once for each id
 * - `resumed`: connected again, what was missed has come: `{ count, complete }`; if it is not
 *   `complete`, some may be lost
 * - `notice`: `{ code, … }`, such as `connection_removed`
 * - `close`: the connection is lost: `{ code, reason, retryIn }`; `retryIn` (ms) is null if it is
 *   not tried again
 * - `failure`: something that nobody waits for went wrong: a HeraldError
 * - `frame`: everything that travels, for a display: `{ sent, text }`
 */
export class Herald extends EventTarget {
  #url;
  #token;
  #options;
  #socket = null;
  #opening = null;
  #closed = true;
  #failures = 0;
  #opened = 0;
  #asked = new Map();
  #nextRef = 1;
  #seen = new Set();
  #groups = new Set();
  #after = ""; // the last message that came in its turn, or a moment until which all have
  #held = null; // what comes while it resumes, for its turn
  #clock = null; // the server's: its `timestamp` when ours was `at`
  #heard = 0;
  #timers = { ping: null, refresh: null, retry: null };

  /**
   * @param {string} url of the WebSocket API, without a token.
   * @param {object} options `token` is required: a JWT, or a function that returns one, or a
   *   promise of one; it is called for each connection and before the token expires. The others
   *   have defaults, see above.
   */
  constructor(url, { token, ...options }) {
    super();
    this.#url = url;
    this.#token = typeof token === "function" ? token : () => token;
    this.#options = { ...DEFAULTS, ...options };
  }

  /** Whether there is a connection now. */
  get connected() {
    return this.#socket?.readyState === 1;
  }

  /**
   * Connect, and stay connected until `close()`. Resolves at the first connection; a refusal does
   * not reject it, since a browser is not told why: see the `close` event.
   */
  connect() {
    this.#closed = false;
    this.#opening ??= withResolvers();
    if (this.#socket === null && this.#timers.retry === null) this.#open();
    return this.#opening.promise;
  }

  /** Disconnect for good; what waits for an answer is rejected. */
  close(code = 1000, reason = "") {
    this.#closed = true;
    this.#stopTimers();
    this.#opening?.reject(new HeraldError("closed", "close() was called"));
    this.#opening = null;
    this.#rejectAll("closed", "close() was called");
    this.#socket?.close(code, reason);
  }

  /**
   * Send a message: `{ to, data, type, encrypt, store }` as in `POST /messages`.
   * @returns {Promise<object>} the report: `{ id, recipients, delivered, … }`, `{ id, queued }`.
   *   A HeraldError with the code `disconnected` or `timeout` leaves open whether it was sent.
   */
  async send(message) {
    const { type: _, ref: __, ...report } = await this.#ask({ ...message, action: "send" });
    return report;
  }

  /** Join a group that the token allows, and join it in each connection to come. */
  async join(group) {
    this.#groups.add(group);
    try {
      await this.#ask({ action: "join", group });
    } catch (error) {
      if (!passes(error)) this.#groups.delete(group);
      throw error;
    }
  }

  async leave(group) {
    this.#groups.delete(group);
    await this.#ask({ action: "leave", group });
  }

  /** @returns {Promise<number>} how long an answer takes, ms. */
  async ping() {
    const began = performance.now();
    const { timestamp } = await this.#ask({ action: "ping" });
    this.#clock = { timestamp, at: performance.now() };
    return this.#clock.at - began;
  }

  // --- The connection

  async #open() {
    this.#timers.retry = null;
    let token;
    try {
      token = await this.#token();
    } catch (error) {
      this.#emit("failure", new HeraldError("no_token", `no token: ${error.message}`));
      return this.#lost(1006, "no token");
    }
    if (this.#closed || this.#socket !== null) return;
    const protocols = [SUBPROTOCOL, `bearer.${token}`];
    const socket = new this.#options.WebSocket(this.#url, protocols);
    this.#socket = socket;
    const impatient = setTimeout(() => this.#drop(socket, "no answer"), this.#options.timeout);
    socket.onopen = () => {
      clearTimeout(impatient);
      this.#failures = 0;
      this.#opened += 1;
      this.#schedulePing();
      this.#scheduleRefresh(token);
      this.#opening?.resolve();
      const again = this.#opened > 1;
      if (again) this.#resume(socket);
      else this.#begin();
      this.#emit("open", { again });
    };
    socket.onmessage = ({ data }) => this.#receive(data);
    socket.onerror = () => {}; // `close` follows, and says as much
    socket.onclose = ({ code, reason }) => {
      clearTimeout(impatient);
      if (socket === this.#socket) this.#lost(code, reason);
    };
  }

  /** The connection is there no more, or never was: try again, if that is wanted. */
  #lost(code, reason) {
    this.#socket = null;
    this.#stopTimers();
    this.#noteEnd(code !== 1006);
    this.#rejectAll("disconnected", `the connection is lost (${code})`);
    let retryIn = null;
    if (!this.#closed) {
      const { firstPause, longestPause } = this.#options;
      // Full jitter, so that those who were cut off together don't come back together:
      // https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/
      retryIn = Math.random() * Math.min(longestPause, firstPause * 2 ** this.#failures);
      this.#failures += 1;
      this.#timers.retry = setTimeout(() => this.#open(), retryIn);
    }
    this.#emit("close", { code, reason, retryIn });
  }

  /** The first connection misses nothing; from here on, something might be. */
  #begin() {
    this.#held = null;
    this.ping().catch(() => {}); // for the clock
  }

  /** Note until when all has come: to the last frame, or the end, if the other side said it. */
  #noteEnd(clean) {
    if (this.#held === null && this.#clock !== null) {
      const heard = clean ? performance.now() : this.#heard;
      const moment = earliest(this.#clock.timestamp + heard - this.#clock.at);
      if (moment > this.#after) this.#after = moment;
    }
    this.#held = []; // what had not had its turn will come again
  }

  /** Ask for what was missed, and let what has come meanwhile have its turn after it. */
  async #resume(socket) {
    if (socket !== this.#socket) return;
    let resumed = { count: 0, complete: false };
    try {
      for (const group of this.#groups) {
        await this.join(group).catch((error) => {
          if (passes(error)) throw error;
          this.#emit("failure", error); // the group is refused, and the others are not
        });
      }
      const frame = { action: "resume", after: this.#after };
      if (this.#after) resumed = await this.#ask(frame, 3 * this.#options.timeout);
    } catch (error) {
      if (socket !== this.#socket) return;
      const wait = error.details.retryAfterMs;
      if (wait !== undefined) return setTimeout(() => this.#resume(socket), wait);
      if (error.code === "timeout") return this.#drop(socket, "no answer");
      this.#emit("failure", error);
    }
    const held = this.#held.sort((one, other) => (one.id < other.id ? -1 : 1));
    this.#held = null;
    held.forEach((message) => this.#deliver(message));
    this.#emit("resumed", { count: resumed.count, complete: resumed.complete });
  }

  /** Give a socket up without waiting for its close: the other side may be gone. */
  #drop(socket, reason) {
    if (socket !== this.#socket) return;
    socket.close();
    this.#lost(1006, reason);
  }

  #schedulePing() {
    const socket = this.#socket;
    this.#timers.ping = setTimeout(async () => {
      try {
        await this.ping();
        if (socket === this.#socket) this.#schedulePing();
      } catch (error) {
        if (error.code === "timeout") this.#drop(socket, "no pong");
        else if (socket === this.#socket) this.#schedulePing(); // it answers, if only with an error
      }
    }, this.#options.pingEvery);
  }

  #scheduleRefresh(token) {
    const left = expiry(token) - Date.now();
    const socket = this.#socket;
    // Of a token that lives shorter than that, the last third.
    const delay = Math.max(left - this.#options.refreshBefore, (left * 2) / 3);
    this.#timers.refresh = setTimeout(async () => {
      try {
        const newer = await this.#token();
        if (socket !== this.#socket || newer === token) return;
        await this.#ask({ action: "refresh", token: newer });
        this.#scheduleRefresh(newer);
      } catch (error) {
        this.#emit("failure", error); // the connection ends with its token; the next asks again
      }
    }, Math.min(delay, MAX_DELAY));
  }

  #stopTimers() {
    for (const name of Object.keys(this.#timers)) {
      clearTimeout(this.#timers[name]);
      this.#timers[name] = null;
    }
  }

  // --- Frames

  #ask(frame, timeout = this.#options.timeout) {
    if (!this.connected) {
      return Promise.reject(new HeraldError("disconnected", "there is no connection"));
    }
    const ref = String(this.#nextRef++);
    const answer = withResolvers();
    const timer = setTimeout(() => {
      this.#asked.delete(ref);
      answer.reject(new HeraldError("timeout", `no answer to ${frame.action}`));
    }, timeout);
    this.#asked.set(ref, { ...answer, timer });
    const text = JSON.stringify({ ...frame, ref });
    this.#socket.send(text);
    this.#emit("frame", { sent: true, text: frame.action === "refresh" ? REFRESH : text });
    return answer.promise;
  }

  #receive(text) {
    this.#emit("frame", { sent: false, text });
    this.#heard = performance.now();
    let frame;
    try {
      frame = JSON.parse(text) ?? {};
    } catch {
      return this.#emit("failure", new HeraldError("bad_frame", `not JSON: ${text.slice(0, 99)}`));
    }
    if (frame.type === "messages") frame.messages.forEach((message) => this.#deliver(message));
    else if (frame.type === "notice") this.#emit("notice", frame);
    else this.#answer(frame);
  }

  #deliver(message) {
    if (this.#held !== null) return this.#held.push(message);
    if (message.id > this.#after) this.#after = message.id;
    if (this.#seen.has(message.id)) return;
    this.#seen.add(message.id);
    if (this.#seen.size > this.#options.remembered) {
      this.#seen.delete(this.#seen.values().next().value);
    }
    this.#emit("message", message);
  }

  #answer(frame) {
    // API Gateway's own errors have no type: a handler failed, and nobody can say for which frame.
    const failed = frame.type === "error" || frame.type === undefined;
    const error = failed && new HeraldError(frame.code ?? "internal", frame.message, frame);
    const asked = this.#asked.get(frame.ref);
    this.#asked.delete(frame.ref);
    clearTimeout(asked?.timer);
    if (!failed) asked?.resolve(frame);
    else if (asked) asked.reject(error);
    else this.#emit("failure", error);
  }

  #rejectAll(code, message) {
    for (const { reject, timer } of this.#asked.values()) {
      clearTimeout(timer);
      reject(new HeraldError(code, message));
    }
    this.#asked.clear();
  }

  #emit(type, detail) {
    this.dispatchEvent(Object.assign(new Event(type), { detail }));
  }
}

/** Whether the same may succeed later, or has without our hearing of it. */
const passes = ({ code, details }) =>
  code === "disconnected" || code === "timeout" || details.retryAfterMs !== undefined;

const REFRESH = '{"action":"refresh","token":"…"}'; // tokens are for no display

/** When a token expires, epoch ms; Infinity if it can't be told. */
export function expiry(token) {
  try {
    const payload = token.split(".")[1].replaceAll("-", "+").replaceAll("_", "/");
    return JSON.parse(atob(payload)).exp * 1000 || Infinity;
  } catch {
    return Infinity;
  }
}

/** The first id (a ULID) of a moment, epoch ms. */
export function earliest(moment) {
  let text = "";
  for (let rest = Math.floor(moment); text.length < 10; rest = Math.floor(rest / 32)) {
    text = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"[rest % 32] + text;
  }
  return text.padEnd(26, "0");
}

function withResolvers() {
  let functions;
  const promise = new Promise((resolve, reject) => (functions = { resolve, reject }));
  promise.catch(() => {}); // whoever doesn't wait for it needs no warning
  return { promise, ...functions };
}
