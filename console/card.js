/** The card of one connection: its state, its controls and its frames. */

import { Herald, expiry } from "/console/client/herald.js";
import { decrypt } from "/console/decrypt.js";
import { closeFromGateway, makeToken, setFault } from "/console/gateway.js";
import { Rest } from "/console/rest.js";

const KEPT_FRAMES = 500;
const SPARE_MS = 5000;
const time = new Intl.DateTimeFormat(undefined, {
  hour: "2-digit", minute: "2-digit", second: "2-digit", hourCycle: "h23",
});

/** Events: `received` (`{ id, after, at }`; `after` is in ms since Herald accepted the message), `changed`, `removed`. */
export class Card extends EventTarget {
  /** The name of this card in the gateway's event stream. */
  key = crypto.randomUUID().slice(0, 8);
  connectionId = null;
  #herald;
  #find;
  #frames;
  #keys = null;
  #last = null;
  #search = "";

  /**
   * @param {object} who `{ user, tenant, claims }`, or `{ user, tenant, token }`
   * @param {object} stage `{ websocket, rest, local }`
   */
  constructor(who, stage) {
    super();
    this.who = who;
    this.stage = stage;
    this.rest = new Rest(stage.rest, () => this.#lastToken());
    const url = stage.local ? `${stage.websocket}?card=${this.key}` : stage.websocket;
    this.#herald = new Herald(url, { token: () => this.#token() });
    this.element = document.querySelector("#card").content.cloneNode(true).firstElementChild;
    this.#find = (selector) => this.element.querySelector(selector);
    this.#frames = this.#find(".frames ol");
    this.#find("h3").textContent = this.name;
    this.element.setAttribute("aria-label", this.name);
    this.#find(".frames").setAttribute("aria-label", `Frames of ${this.name}`);
    if (!stage.local) this.#find(".faults").remove();
    this.#listen();
    this.connect();
  }

  get name() {
    const { user, tenant } = this.who;
    return tenant ? `${user} · ${tenant}` : user;
  }

  get connected() {
    return this.#herald.connected;
  }

  connect() {
    this.#show("wait", "connecting");
    this.#herald.connect().catch(() => {});
  }

  /** Send a message over this connection. Returns its report. */
  send = (message) => this.#herald.send(message);

  /** Take the connection id that the gateway's event stream names for this card. */
  identify(connectionId) {
    this.connectionId = connectionId;
    this.#find(".id code").textContent = connectionId;
    this.#applyFaults();
    this.#changed();
  }

  /** Show only the frames that contain `text`. */
  search(text) {
    this.#search = text.toLowerCase();
    for (const frame of this.#frames.children) frame.hidden = !this.#matches(frame);
  }

  async #token() {
    this.#last = this.who.token ?? (await makeToken(this.who.claims));
    return this.#last;
  }

  /** Returns the last token while it is still valid, or else a new one. */
  async #lastToken() {
    const good = this.#last !== null && expiry(this.#last) > Date.now() + SPARE_MS;
    return good ? this.#last : this.#token();
  }

  #listen() {
    this.#herald.addEventListener("open", () => {
      this.#show("open", "connected");
      this.#note("Connected");
    });
    this.#herald.addEventListener("close", ({ detail: { code, reason, retryIn } }) => {
      this.connectionId = null;
      this.#find(".id code").textContent = "";
      const again = retryIn === null ? "" : ` Reconnecting in ${(retryIn / 1000).toFixed(1)} s.`;
      this.#show(retryIn === null ? "closed" : "lost", retryIn === null ? "disconnected" : "reconnecting");
      this.#note(`Closed with code ${code}${reason && ` (${reason})`}.${again}`, retryIn !== null);
    });
    this.#herald.addEventListener("frame", ({ detail }) => this.#showFrame(detail));
    this.#herald.addEventListener("message", ({ detail: { id, timestamp } }) =>
      this.#emit("received", { id, after: Date.now() - timestamp, at: performance.now() }),
    );
    this.#herald.addEventListener("failure", ({ detail }) => this.#note(detail.message, true));
    this.element.addEventListener("click", ({ target }) => this.#do(target.dataset.do));
    this.element.addEventListener("change", ({ target }) => {
      if (target.dataset.fault) this.#applyFaults();
    });
    this.#find("form").addEventListener("submit", (event) => {
      event.preventDefault();
      const action = event.submitter.value;
      const group = event.target.elements.group.value;
      this.#herald[action](group).catch((error) => this.#note(error.message, true));
    });
  }

  async #do(what) {
    try {
      if (what === "ping") await this.#herald.ping();
      if (what === "cut" && this.connectionId) await closeFromGateway(this.connectionId);
      if (what === "toggle" && this.#wanted) this.#herald.close();
      else if (what === "toggle") this.connect();
      if (what === "remove") {
        this.#herald.close();
        this.element.remove();
        this.#emit("removed");
      }
    } catch (error) {
      this.#note(error.message, true);
    }
  }

  get #wanted() {
    return this.#find(".status").dataset.state !== "closed";
  }

  async #applyFaults() {
    const { delayMs, status } = Object.fromEntries(
      [...this.element.querySelectorAll("[data-fault]")].map((one) => [one.dataset.fault, one.value]),
    );
    if (delayMs === undefined) return;
    const fault = { delayMs: Number(delayMs), status: Number(status) || null };
    this.#find(".injecting").textContent = fault.delayMs || fault.status ? "active" : "";
    if (this.connectionId === null) return;
    await setFault(this.connectionId, fault).catch((error) => this.#note(error.message, true));
  }

  #show(state, text) {
    const status = this.#find(".status");
    status.dataset.state = state;
    status.textContent = text;
    this.#find("[data-do=toggle]").textContent = state === "closed" ? "Reconnect" : "Disconnect";
    for (const button of this.element.querySelectorAll("[data-do=ping], [data-do=cut], form button")) {
      button.disabled = state !== "open";
    }
    this.#changed();
  }

  #changed() {
    this.#emit("changed");
  }

  #emit(type, detail) {
    this.dispatchEvent(new CustomEvent(type, { detail }));
  }

  // --- Frames

  async #showFrame({ sent, text }) {
    const shown = this.#frame(sent ? "out" : "in", summary(text), pretty(text));
    if (sent || !text.includes('"encrypted"')) return;
    try {
      const frame = JSON.parse(text);
      for (const message of frame.messages.filter(({ encrypted }) => encrypted)) {
        this.#keys ??= this.rest.keys();
        message.data = await decrypt(message.data, await this.#keys);
        message.decrypted = true;
      }
      fill(shown, summary(JSON.stringify(frame)), JSON.stringify(frame, null, 2));
    } catch (error) {
      this.#keys = null;
      this.#note(`Could not decrypt: ${error.message}`, true);
    }
  }

  #note(text, trouble = false) {
    this.#frame(trouble ? "trouble" : "note", text);
  }

  #frame(kind, short, whole = null) {
    const frame = document.createElement("li");
    frame.className = kind;
    const now = new Date();
    const way = { out: "↑", in: "↓", trouble: "!", note: "·" }[kind];
    const spoken = { out: "sent", in: "received", trouble: "problem", note: "event" }[kind];
    const details = element("details", element("summary",
      Object.assign(element("span", way), { className: "way", title: spoken }),
      Object.assign(element("time", time.format(now)), { dateTime: now.toISOString() }),
      element("span"),
    ), element("pre"));
    frame.append(details);
    fill(frame, short, whole ?? short);
    frame.hidden = !this.#matches(frame);
    this.#frames.prepend(frame);
    if (this.#frames.children.length > KEPT_FRAMES) this.#frames.lastChild.remove();
    return frame;
  }

  #matches(frame) {
    return frame.textContent.toLowerCase().includes(this.#search);
  }
}

function fill(frame, short, whole) {
  frame.querySelector("summary span:last-child").textContent = short;
  frame.querySelector("pre").textContent = whole;
}

/** Returns a frame as one line: its kind, then its content. */
function summary(text) {
  try {
    const { action, type, messages, ref, ...rest } = JSON.parse(text);
    if (messages === undefined) return `${action ?? type ?? ""} ${values(rest)}`;
    return messages.map(({ from, type, data, encrypted, decrypted }) => {
      const lock = decrypted ? "🔓 " : encrypted ? "🔒 " : "";
      return `${lock}${type} from ${from}: ${typeof data === "string" ? data : JSON.stringify(data)}`;
    }).join(" ⏎ ");
  } catch {
    return text;
  }
}

const values = (object) =>
  Object.entries(object).map(([name, value]) => `${name}: ${typeof value === "string" ? value : JSON.stringify(value)}`).join(", ");

function pretty(text) {
  try {
    return JSON.stringify(JSON.parse(text), null, 2);
  } catch {
    return text;
  }
}

function element(name, ...children) {
  const made = document.createElement(name);
  made.append(...children);
  return made;
}
