/** The presence table: the users of the connections on this page, as Herald reports them. */

const EVERY_MS = 3000;
const time = new Intl.DateTimeFormat(undefined, { timeStyle: "medium" });

export class Presence {
  #rows = document.querySelector("#presence");
  #cards;
  #due = null;

  /** `cards` returns the cards whose users are shown. Each request carries the token of its card. */
  constructor(cards) {
    this.#cards = cards;
    setInterval(() => this.refresh(), EVERY_MS);
  }

  /** Update the table shortly, since a connection opened or closed. */
  refresh() {
    this.#due ??= setTimeout(() => {
      this.#due = null;
      this.#ask();
    }, 200);
  }

  async #ask() {
    const cards = new Map(this.#cards().map((card) => [card.name, card]));
    const rows = await Promise.all([...cards.values()].map((card) => row(card)));
    document.querySelector("#nobody").hidden = rows.length > 0;
    this.#rows.replaceChildren(...rows);
  }
}

async function row(card) {
  let cells;
  let status = "";
  try {
    const found = await card.rest.presence(card.who.user);
    status = found.status;
    const seen = found.lastSeen ? time.format(found.lastSeen) : "–";
    cells = [found.status, found.connections, seen];
  } catch (error) {
    cells = [error.message, "", ""];
  }
  const made = document.createElement("tr");
  for (const text of [card.name, ...cells]) {
    const cell = document.createElement("td");
    cell.textContent = text;
    made.append(cell);
  }
  made.children[1].className = status;
  return made;
}
