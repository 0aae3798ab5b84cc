/**
 * A client of Herald for browsers and Node: keeps one WebSocket connected.
 *
 *   const herald = new Herald("wss://…", { token: () => fetchToken() });
 *   herald.addEventListener("message", ({ detail }) => console.log(detail.from, detail.data));
 *   await herald.connect();
 *   const report = await herald.send({ to: { users: ["bob"] }, data: { text: "Hi" } });
 *
 * When the connection breaks, the client reconnects, with growing, random pauses, and gets the
 * messages that it missed. It pings after silence, so that API Gateway doesn't close the connection as
 * idle, and sends a heartbeat an hour, since Herald doesn't see pings. It sends a new token before the
 * old one expires, and it drops messages that it has seen.
 */

export const SUBPROTOCOL = "herald.v1";

const DEFAULTS = { // times in ms
  pingEvery: 9.5 * 60_000, // silence in both directions: API Gateway closes a connection after 10 min
  heartbeatEvery: 60 * 60_000, // without another frame than pings, which API Gateway answers itself
  timeout: 10_000, // the longest wait for an answer, and for a connection
  firstPause: 500, // the longest pause before the first attempt to reconnect; it doubles each time
  longestPause: 30_000, // the longest pause before any attempt
  refreshBefore: 60_000, // how long before the token's expiry the client fetches a new one
  remembered: 10_000, // message ids that are kept, to recognize duplicates
  WebSocket: globalThis.WebSocket, // in Node before 22, pass the one of the package `ws`
};
const MAX_DELAY = 2 ** 31 - 1; // beyond it, setTimeout fires at once
const JWT = /^[\w.-]+$/; // characters that a subprotocol can carry
const BASE32 = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"; // of ULIDs
const REFRESH = '{"action":"refresh","token":"…"}'; // tokens are not displayed

/**
 * A refusal, or a missing answer: its `code` is stable, such as `rate_limited`; its `details` are
 * the whole error frame, which may have `retryAfterMs`.
 */
export class HeraldError extends Error {
  constructor(code, message, details = {}) {
    super(message);
    Object.assign(this, { name: "HeraldError", code, details });
  }

  /** True if the request may succeed later, or may have succeeded without an answer. */
  get passes() {
    return ["disconnected", "timeout"].includes(this.code) || "retryAfterMs" in this.details;
  }
}

/**
 * Events, each with a `detail`:
 *
 * - `open`: connected; `{ again }` is true after a reconnect
 * - `message`: `{ id, type, from, timestamp, data, encrypted }`, once for each id
 * - `resumed`: reconnected, and the missed messages have arrived: `{ count, complete }`; unless it
 *   is `complete`, some may be lost
 * - `notice`: `{ code, … }`, such as `connection_removed`
 * - `close`: the connection was lost: `{ code, reason, retryIn }`; `retryIn` (ms) is null if the
 *   client doesn't reconnect
 * - `failure`: a HeraldError that no promise reports
 * - `frame`: each frame that is sent or received, for display: `{ sent, text }`
 */
export class Herald extends EventTarget {
  #url;
  #token;
  #options;
  #socket = null;
  #wanted = null; // from connect() to close(): the promise of a first connection
  #again = false; // whether there has been a connection
  #failures = 0; // since the last connection
  #timers = new Set(); // of this connection
  #silence; // the timer of the next ping
  #idleness; // the timer of the next heartbeat
  #beatSoon = false; // whether a heartbeat replaces the next ping
  #pending = new Map(); // requests that wait for an answer, by ref
  #nextRef = 1;
  #seen = new Set();
  #groups = new Set();
  #after = ""; // resume from here: the last message, or a time until which all have come
  #held = null; // messages that arrive while it resumes
  #clockOffset = null; // the server's clock minus ours, ms
  #lastFrame = 0; // when the last frame arrived

  /**
   * @param {string} url the address of the WebSocket API, without a token. Throws TypeError if it
   *   isn't a URL.
   * @param {object} options `token`: a JWT, or a function that returns one or a promise of one,
   *   which is called for each connection and before the token expires; and those of DEFAULTS.
   */
  constructor(url, { token, ...options }) {
    super();
    this.#url = new URL(url, globalThis.location?.href).href;
    this.#token = typeof token === "function" ? token : () => token;
    this.#options = { ...DEFAULTS, ...options };
  }

  /** True while the client is connected. */
  get connected() {
    return this.#socket?.readyState === 1;
  }

  /**
   * Connect, and stay connected until `close()`. Resolves at the first connection. A refusal
   * doesn't reject the promise, since browsers don't give the reason; see the `close` event.
   */
  connect() {
    if (this.#wanted === null) {
      this.#wanted = withResolvers();
      if (this.#socket === null) this.#open();
    }
    return this.#wanted.promise;
  }

  /** Disconnect, and don't reconnect. Pending requests are rejected. */
  close(code = 1000, reason = "") {
    const error = this.#stop("closed", "the client was closed");
    this.#wanted?.reject(error);
    this.#wanted = null;
    this.#socket?.close(code, reason);
  }

  /**
   * Send a message: `{ to, data, type, encrypt, store }` as in `POST /messages`.
   * @returns {Promise<object>} the report: `{ id, recipients, delivered, … }`, `{ id, queued }`.
   *   With a HeraldError `disconnected` or `timeout`, the message may have been sent or not.
   */
  async send(message) {
    const { type: _, ref: __, ...report } = await this.#ask({ ...message, action: "send" });
    return report;
  }

  /** Join a group that the token allows, now and after each reconnect. */
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

  /** @returns {Promise<number>} the round-trip time, ms. */
  async ping() {
    const began = performance.now();
    await this.#ask({ action: "ping" });
    return performance.now() - began;
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
    socket.onerror = () => {}; // `close` follows
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
    this.#awaitSilence();
    this.#awaitIdleness();
    this.#renew(socket, token);
    this.#wanted?.resolve();
    const again = this.#again;
    this.#again = true;
    if (again) this.#resume(socket);
    else this.#begin();
    this.#emit("open", { again });
  }

  /** Learn the server's clock. A first connection has missed nothing yet. */
  #begin() {
    this.#held = null;
    // A pong may lack the time; a function's answer has it.
    this.ping().then(() => this.#clockOffset ?? this.#ask({ action: "heartbeat" })).catch(() => {});
  }

  /** The connection ended or couldn't be opened: reconnect, unless the client is closed. */
  #lost(code, reason) {
    this.#socket = null;
    this.#stop("disconnected", `the connection was lost (${code})`);
    if (code !== 1006) this.#lastFrame = performance.now(); // a clean close: everything has arrived
    if (this.#held === null && this.#clockOffset !== null) {
      const moment = earliest(this.#lastFrame + this.#clockOffset);
      if (moment > this.#after) this.#after = moment;
    }
    this.#held = []; // held messages will come again
    let retryIn = null;
    if (this.#wanted !== null) {
      const { firstPause, longestPause } = this.#options;
      // Full jitter, so that clients that were cut off together don't reconnect together:
      // https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/
      retryIn = Math.random() * Math.min(longestPause, firstPause * 2 ** this.#failures++);
      this.#pause(retryIn).then(() => this.#open());
    }
    this.#emit("close", { code, reason, retryIn });
  }

  /** Abandon a socket without waiting for its close, since the other side may be gone. */
  #drop(socket, reason) {
    if (socket !== this.#socket) return;
    socket.close();
    this.#lost(1006, reason);
  }

  /** Fetch the missed messages, then deliver those that arrived meanwhile. */
  async #resume(socket) {
    let resumed = { count: 0, complete: false };
    try {
      for (const group of this.#groups) {
        await this.join(group).catch((error) => {
          if (error.passes) throw error;
          this.#emit("failure", error); // this group is refused; try the others
        });
      }
      const frame = { action: "resume", after: this.#after };
      if (this.#after) resumed = await this.#ask(frame, 3 * this.#options.timeout);
    } catch (error) {
      // The connection is lost, or about to be; the next one resumes.
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

  /** Ping after silence in both directions, or send a heartbeat if one will soon be due. */
  #awaitSilence() {
    clearTimeout(this.#silence);
    const check = () => this.#check(this.#beatSoon ? "heartbeat" : "ping");
    this.#silence = setTimeout(check, Math.min(this.#options.pingEvery, MAX_DELAY));
  }

  /** Send a heartbeat when this client has sent nothing but pings for long. */
  #awaitIdleness() {
    clearTimeout(this.#idleness);
    this.#beatSoon = false;
    const every = Math.min(this.#options.heartbeatEvery, MAX_DELAY);
    this.#idleness = setTimeout(() => {
      this.#beatSoon = true;
      this.#idleness = setTimeout(() => this.#check("heartbeat"), 0.05 * every);
    }, 0.95 * every);
  }

  /**
   * Abandon the socket if a ping isn't answered, and nothing else arrives. An unanswered heartbeat
   * may be a function's fault, so a ping follows, which API Gateway answers.
   */
  async #check(action) {
    const [socket, last] = [this.#socket, this.#lastFrame];
    await this.#ask({ action }).catch((error) => {
      if (error.code !== "timeout" || last !== this.#lastFrame) return;
      return action === "ping" ? this.#drop(socket, "no pong") : this.#check("ping");
    });
  }

  async #renew(socket, token) {
    const left = expiry(token) - Date.now();
    // For a token with a shorter life, when two thirds of it are over.
    await this.#pause(Math.max(left - this.#options.refreshBefore, (left * 2) / 3));
    const newer = await this.#fetchToken();
    if (socket !== this.#socket || newer === null || newer === token) return;
    try {
      await this.#ask({ action: "refresh", token: newer });
      this.#renew(socket, newer);
    } catch (error) {
      this.#emit("failure", error); // the connection ends with its token; the next fetches one
    }
  }

  /** Resolve after `ms`; never, if the connection ends first. */
  #pause(ms) {
    return new Promise((resolve) => this.#timers.add(setTimeout(resolve, Math.min(ms, MAX_DELAY))));
  }

  #stopTimers() {
    for (const timer of [this.#silence, this.#idleness, ...this.#timers]) clearTimeout(timer);
    this.#timers.clear();
  }

  /** Stop the timers, and reject all pending requests with an error, which is returned. */
  #stop(code, message) {
    this.#stopTimers();
    const error = new HeraldError(code, message);
    this.#pending.forEach(({ reject }) => reject(error));
    return error;
  }

  async #ask(frame, timeout = this.#options.timeout) {
    if (!this.connected) throw new HeraldError("disconnected", "not connected");
    const ref = `${frame.action}-${this.#nextRef++}`;
    const { promise, resolve, reject } = withResolvers();
    const late = () => reject(new HeraldError("timeout", `no answer to ${frame.action}`));
    const timer = setTimeout(late, timeout);
    this.#pending.set(ref, { resolve, reject });
    const text = JSON.stringify({ ...frame, ref });
    this.#socket.send(text);
    this.#awaitSilence();
    if (frame.action !== "ping") this.#awaitIdleness();
    this.#emit("frame", { sent: true, text: frame.action === "refresh" ? REFRESH : text });
    try {
      return await promise;
    } finally {
      clearTimeout(timer);
      this.#pending.delete(ref);
    }
  }

  #receive(text) {
    this.#emit("frame", { sent: false, text });
    this.#lastFrame = performance.now();
    this.#awaitSilence();
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
    // API Gateway's pongs have no ref.
    const { type } = frame;
    const ping = type === "pong" && [...this.#pending.keys()].find((one) => one.startsWith("ping-"));
    const ref = frame.ref ?? ping;
    const asked = this.#pending.get(ref);
    this.#pending.delete(ref); // a second pong is for another ping
    if (asked && /^(ping|heartbeat)-/.test(ref) && /^\d+$/.test(frame.timestamp)) {
      this.#clockOffset = frame.timestamp - this.#lastFrame;
    }
    // API Gateway's own errors have no type: a handler failed, and it is unknown for which frame.
    if (type !== "error" && type !== undefined) return asked?.resolve(frame);
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

/** Return the time at which a token expires, in epoch ms; Infinity if it has no expiry. */
export function expiry(token) {
  try {
    const payload = token.split(".")[1].replaceAll("-", "+").replaceAll("_", "/");
    return JSON.parse(atob(payload)).exp * 1000 || Infinity;
  } catch {
    return Infinity;
  }
}

/** The first id (a ULID) of a time, in epoch ms. */
export function earliest(moment) {
  const digits = Math.floor(moment).toString(32).padStart(10, "0");
  return digits.replace(/./g, (digit) => BASE32[parseInt(digit, 32)]).padEnd(26, "0");
}

function withResolvers() {
  let functions;
  const promise = new Promise((resolve, reject) => (functions = { resolve, reject }));
  promise.catch(() => {}); // avoids a warning if nobody waits for it
  return { promise, ...functions };
}
