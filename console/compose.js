/** The form that sends messages, and the delivery report of each message. */

const POLL_MS = 500;
const KEPT_REPORTS = 20;
const RECIPIENTS = { users: "User IDs", groups: "Group names", connections: "Connection IDs", all: "User IDs" };
const COUNTS = ["delivered", "gone", "stale", "rejected"];

export class Compose {
  #form = document.querySelector("#compose");
  #reports = document.querySelector("#reports");
  #cards;
  #arrivals = new Map(); // message id → a function that adds a receipt to its report, while that is shown
  #early = new Map(); // message id → the receipts that came before its report

  /** `cards` returns the cards whose connections can send. */
  constructor(cards) {
    this.#cards = cards;
    this.#form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.#send();
    });
    this.#form.elements.kind.addEventListener("change", () => this.#showNames());
  }

  /** Offer the current cards as senders. */
  offer() {
    const select = this.#form.elements.from;
    const chosen = select.value;
    select.replaceChildren(...this.#cards().map((card, index) => {
      const suffix = card.connectionId ? ` (${card.connectionId.slice(0, 5)}…)` : "";
      return new Option(`${index + 1}  ${card.name}${suffix}`, card.key);
    }));
    if (this.#cards().some(({ key }) => key === chosen)) select.value = chosen;
  }

  /** Record that a card has received a message. */
  arrived(card, { id, at }) {
    const show = this.#arrivals.get(id);
    if (show) show(card, at);
    else this.#early.set(id, [...(this.#early.get(id) ?? []), [card, at]]);
    if (this.#early.size > 1000) this.#early.delete(this.#early.keys().next().value);
  }

  #showNames() {
    const { kind, names } = this.#form.elements;
    names.disabled = kind.value === "all";
    document.querySelector("#names-label").textContent = RECIPIENTS[kind.value];
  }

  #message() {
    const field = (name) => this.#form.elements[name].value.trim();
    const list = (name) => field(name).split(",").map((one) => one.trim()).filter(Boolean);
    const to = field("kind") === "all" ? { all: true } : { [field("kind")]: list("names") };
    if (list("exceptUsers").length) to.exceptUsers = list("exceptUsers");
    return {
      to,
      ...(field("type") && { type: field("type") }),
      data: parsed(field("data")),
      ...(this.#form.elements.encrypt.checked && { encrypt: true }),
    };
  }

  async #send() {
    const { from, via } = this.#form.elements;
    const error = this.#form.querySelector(".error");
    const card = this.#cards().find(({ key }) => key === from.value);
    error.textContent = "";
    if (card === undefined) {
      error.textContent = "Connect a client first.";
      return;
    }
    const began = performance.now();
    try {
      const over = via.value === "rest" ? this.#post : (_, message) => card.send(message);
      const report = await over(card, this.#message());
      const took = Math.round(performance.now() - began);
      this.#show(card, report, began, took);
    } catch (failure) {
      error.textContent = failure.message;
    }
  }

  async #post(card, message) {
    const { messages: [report], durationMs } = await card.rest.post(message);
    return { ...report, durationMs };
  }

  #show(card, report, began, took) {
    const shown = document.createElement("article");
    shown.className = "report";
    const title = document.createElement("h3");
    title.textContent = `${report.id} from ${card.name}`;
    const counts = document.createElement("p");
    const list = document.createElement("ul");
    shown.append(title, counts, list);
    this.#reports.prepend(shown);
    for (const old of [...this.#reports.children].slice(KEPT_REPORTS)) old.remove();
    const arrived = (at, name) => line(list, `${name} received it after ${Math.round(at - began)} ms`);
    for (const [who, at] of this.#early.get(report.id) ?? []) arrived(at, who.name);
    this.#early.delete(report.id);
    this.#arrivals.set(report.id, (who, at) => arrived(at, who.name));
    if (this.#arrivals.size > KEPT_REPORTS) this.#arrivals.delete(this.#arrivals.keys().next().value);
    if (report.queued) this.#follow(card, report.id, shown, counts, list, took);
    else {
      const herald = report.durationMs === undefined ? "" : ` (${report.durationMs} ms in Herald)`;
      counts.textContent = `${inWords(report)}. Response after ${took} ms${herald}.`;
      failures(list, report);
    }
  }

  async #follow(card, id, shown, counts, list, took) {
    const bar = document.createElement("progress");
    bar.setAttribute("aria-label", `Delivery progress of ${id}`);
    counts.after(bar);
    counts.textContent = `Queued after ${took} ms.`;
    while (shown.isConnected) {
      try {
        const progress = await card.rest.progress(id);
        const { total, done, failed } = progress.shards;
        bar.max = total;
        bar.value = done + failed;
        const shards = progress.done ? "Done" : `${done} of ${total} shards done`;
        counts.textContent = `${shards}. ${inWords(progress)}. Queued after ${took} ms.`;
        if (progress.done) return failures(list, progress);
      } catch (error) {
        counts.textContent = error.message;
      }
      await new Promise((resolve) => setTimeout(resolve, POLL_MS));
    }
  }
}

function inWords(report) {
  const counts = COUNTS.filter((name) => report[name]).map((name) => `${report[name]} ${name}`);
  const s = report.recipients === 1 ? "" : "s";
  return `${report.recipients} recipient${s}${counts.length ? `: ${counts.join(", ")}` : ""}`;
}

function failures(list, { failed = [] }) {
  for (const { userId, connectionId, reason } of failed) {
    line(list, `${userId} (${connectionId}): ${reason}`);
  }
}

function line(list, text) {
  const item = document.createElement("li");
  item.textContent = text;
  list.append(item);
}

/** Returns the parsed JSON, or the text itself if it is not JSON. */
function parsed(text) {
  try {
    return JSON.parse(text);
  } catch {
    return text;
  }
}
