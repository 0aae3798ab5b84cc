/** A client of a stage's REST API. */
export class Rest {
  #base;
  #token;

  /** `token` is a function that returns a JWT or a promise of one. */
  constructor(base, token) {
    this.#base = base;
    this.#token = token;
  }

  /** Post a message. Returns `{ messages, durationMs }`. */
  post = (message) => this.#ask("/messages", { method: "POST", body: JSON.stringify(message) });

  /** Returns the progress of a queued message. */
  progress = (id) => this.#ask(`/messages/${id}`);

  presence = (user) => this.#ask(`/users/${encodeURIComponent(user)}`);

  /** Returns the user's keys as JWKs. */
  keys = async () => (await this.#ask("/keys")).keys;

  async #ask(path, options = {}) {
    const headers = {
      Authorization: `Bearer ${await this.#token()}`,
      ...(options.body && { "Content-Type": "application/json" }),
    };
    const answer = await fetch(this.#base + path, { ...options, headers });
    const content = await answer.json();
    if (answer.ok) return content;
    const why = content.detail ?? content.message ?? content.Message;
    throw new Error(`${[answer.status, content.code].filter(Boolean).join(" ")}: ${why}`);
  }
}
