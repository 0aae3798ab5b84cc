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
const JWT = /^[\w.-]+$/; // what a subprotocol can carry of anything that might be one
const BASE32 = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"; // of ULIDs
const REFRESH = '{"action":"refresh","token":"…"}'; // tokens are for no display

/**
 * An answer that says no, or none at all: its `code` is stable, such as `rate_limited`; its
 * `details` are the whole error frame, such as with `retryAfterMs`.
 */
export class HeraldError extends Error {
  constructor(code, message, details = {}) {
    super(message);
    Object.assign(this, { name: "HeraldError", code, details });
  }

  /** Whether the same may succeed later, or has without our hearing of it. */
  get passes() {
    return ["disconnected", "timeout"].includes(this.code) || "retryAfterMs" in this.details;
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
  #wanted = null; // from connect() to close(): the promise of a first connection
  #again = false; // there has been one
  #failures = 0; // since the last one
  #timers = new Set(); // of this connection
  #asked = new Map(); // what waits for an answer, by ref
  #nextRef = 1;
  #seen = new Set();
  #groups = new Set();
  #after = ""; // the last message that came in its turn, or a moment until which all have
  #held = null; // what comes while it resumes, for its turn
  #ahead = null; // of the server's clock before ours, ms
  #heard = 0; // when the last frame came

  /**
   * @param {string} url of the WebSocket API, without a token. Throws TypeError if it is none.
   * @param {object} options `token`: a JWT, or a function that returns one, or a promise of one,
   *   called for each connection and before the token expires; and what has a default, see above.
   */
  constructor(url, { token, ...options }) {
    super();
    this.#url = new URL(url, globalThis.location?.href).href;
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
    if (this.#wanted === null) {
      this.#wanted = withResolvers();
      if (this.#socket === null) this.#open();
    }
    return this.#wanted.promise;
  }

  /** Disconnect for good; what waits for an answer is rejected. */
  close(code = 1000, reason = "") {
    const error = this.#stop("closed", "close() was called");
    this.#wanted?.reject(error);
    this.#wanted = null;
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
      if (!error.passes) this.#groups.delete(group);
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
    const ended = performance.now();
    this.#ahead = timestamp - ended;
    return ended - began;
  }

  async #open() {
    const token = await this.#fetchToken();
    if (this.#wanted === null || this.#socket !== null) return;
    if (token === null) return this.#lost(1006, "no token");
    const socket = new this.#options.WebSocket(this.#url, [SUBPROTOCOL, `bearer.${token}`]);
    this.#socket = socket;
    this.#pause(this.#options.timeout).then(() => this.#drop(socket, "no answer"));
    socket.onopen = () => this.#use(socket, token);
    socket.onmessage = ({ data }) => this.#receive(data);
    socket.onerror = () => {}; // `close` follows, and says as much
    socket.onclose = ({ code, reason }) => {
      if (socket === this.#socket) this.#lost(code, reason);
    };
  }

  async #fetchToken() {
    try {
      const token = await this.#token();
      if (!JWT.test(token ?? "")) throw new TypeError("it is not a JWT");
      return token;
    } catch (error) {
      this.#emit("failure", new HeraldError("no_token", `no token: ${error.message}`));
      return null;
    }
  }

  #use(socket, token) {
    this.#stopTimers();
    this.#failures = 0;
    this.#stayActive(socket);
    this.#renew(socket, token);
    this.#wanted?.resolve();
    const again = this.#again;
    this.#again = true;
    if (again) this.#resume(socket);
    else this.#begin();
    this.#emit("open", { again });
  }

  /** The first connection misses nothing; from here on, something might be. */
  #begin() {
    this.#held = null;
    this.ping().catch(() => {}); // for the clock
  }

  /** The connection is there no more, or never was: try again, if that is wanted. */
  #lost(code, reason) {
    this.#socket = null;
    this.#stop("disconnected", `the connection is lost (${code})`);
    if (code !== 1006) this.#heard = performance.now(); // it was closed, and all before has come
    if (this.#held === null && this.#ahead !== null) {
      const moment = earliest(this.#heard + this.#ahead);
      if (moment > this.#after) this.#after = moment;
    }
    this.#held = []; // what had not had its turn will come again
    let retryIn = null;
    if (this.#wanted !== null) {
      const { firstPause, longestPause } = this.#options;
      // Full jitter, so that those who were cut off together don't come back together:
      // https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/
      retryIn = Math.random() * Math.min(longestPause, firstPause * 2 ** this.#failures++);
      this.#pause(retryIn).then(() => this.#open());
    }
    this.#emit("close", { code, reason, retryIn });
  }

  /** Give a socket up without waiting for its close: the other side may be gone. */
  #drop(socket, reason) {
    if (socket !== this.#socket) return;
    socket.close();
    this.#lost(1006, reason);
  }

  /** Ask for what was missed, and let what has come meanwhile have its turn after it. */
  async #resume(socket) {
    let resumed = { count: 0, complete: false };
    try {
      for (const group of this.#groups) {
        await this.join(group).catch((error) => {
          if (error.passes) throw error;
          this.#emit("failure", error); // the group is refused, and the others are not
        });
      }
      const frame = { action: "resume", after: this.#after };
      if (this.#after) resumed = await this.#ask(frame, 3 * this.#options.timeout);
    } catch (error) {
      // It is lost, or about to be: the next connection asks again.
      if (socket !== this.#socket || error.code === "disconnected") return;
      const wait = error.details.retryAfterMs;
      if (wait !== undefined) return this.#pause(wait).then(() => this.#resume(socket));
      if (error.code === "timeout") return this.#drop(socket, "no answer");
      this.#emit("failure", error);
    }
    const held = this.#held.sort((one, other) => (one.id < other.id ? -1 : 1));
    this.#held = null;
    held.forEach((message) => this.#deliver(message));
    this.#emit("resumed", { count: resumed.count, complete: resumed.complete });
  }

  async #stayActive(socket) {
    while (socket === this.#socket) {
      await this.#pause(this.#options.pingEvery);
      await this.ping().catch((error) => {
        if (error.code === "timeout") this.#drop(socket, "no pong"); // any other is an answer, too
      });
    }
  }

  async #renew(socket, token) {
    const left = expiry(token) - Date.now();
    // Of a token that lives shorter than that, the last third.
    await this.#pause(Math.max(left - this.#options.refreshBefore, (left * 2) / 3));
    const newer = await this.#fetchToken();
    if (socket !== this.#socket || newer === null || newer === token) return;
    try {
      await this.#ask({ action: "refresh", token: newer });
      this.#renew(socket, newer);
    } catch (error) {
      this.#emit("failure", error); // the connection ends with its token; the next asks again
    }
  }

  /** Resolves after so many ms, unless the connection ends before. */
  #pause(ms) {
    return new Promise((resolve) => this.#timers.add(setTimeout(resolve, Math.min(ms, MAX_DELAY))));
  }

  #stopTimers() {
    this.#timers.forEach((timer) => clearTimeout(timer));
    this.#timers.clear();
  }

  /** Nothing comes any more: an error for all who wait. */
  #stop(code, message) {
    this.#stopTimers();
    const error = new HeraldError(code, message);
    this.#asked.forEach(({ reject }) => reject(error));
    return error;
  }

  async #ask(frame, timeout = this.#options.timeout) {
    if (!this.connected) throw new HeraldError("disconnected", "there is no connection");
    const ref = String(this.#nextRef++);
    const { promise, resolve, reject } = withResolvers();
    const late = () => reject(new HeraldError("timeout", `no answer to ${frame.action}`));
    const timer = setTimeout(late, timeout);
    this.#asked.set(ref, { resolve, reject });
    const text = JSON.stringify({ ...frame, ref });
    this.#socket.send(text);
    this.#emit("frame", { sent: true, text: frame.action === "refresh" ? REFRESH : text });
    try {
      return await promise;
    } finally {
      clearTimeout(timer);
      this.#asked.delete(ref);
    }
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

  #answer(frame) {
    const asked = this.#asked.get(frame.ref);
    // API Gateway's own errors have no type: a handler failed, and nobody can say for which frame.
    if (frame.type !== "error" && frame.type !== undefined) return asked?.resolve(frame);
    const error = new HeraldError(frame.code ?? "internal", frame.message, frame);
    if (asked) asked.reject(error);
    else this.#emit("failure", error);
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

  #emit(type, detail) {
    this.dispatchEvent(Object.assign(new Event(type), { detail }));
  }
}

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
  const digits = Math.floor(moment).toString(32).padStart(10, "0");
  return digits.replace(/./g, (digit) => BASE32[parseInt(digit, 32)]).padEnd(26, "0");
}

function withResolvers() {
  let functions;
  const promise = new Promise((resolve, reject) => (functions = { resolve, reject }));
  promise.catch(() => {}); // whoever doesn't wait for it needs no warning
  return { promise, ...functions };
}
