// Hears of what changes. The browser connects again by itself, and says what it heard last.

const SILENCE = 12; // s without a word after which the server counts as lost; it says something every 4
const AGAIN = 3000; // ms after which a connection that was refused is tried again

export class Stream {
  /** @param take - called with each kind of message and what it says */
  constructor(take) {
    this.take = take;
    this.heard = Date.now() / 1000;
    this.#connect();
  }

  #connect() {
    const source = new EventSource("page/stream");
    for (const kind of ["facts", "events", "tick"]) {
      source.addEventListener(kind, (event) => {
        this.heard = Date.now() / 1000;
        this.take(kind, JSON.parse(event.data));
      });
    }
    source.addEventListener("error", () => {
      if (source.readyState === EventSource.CLOSED) setTimeout(() => this.#connect(), AGAIN);
    });
  }

  /** Since when nothing was heard, in seconds since 1970; null: something was, lately. */
  get lost() {
    return Date.now() / 1000 - this.heard > SILENCE ? this.heard : null;
  }
}
