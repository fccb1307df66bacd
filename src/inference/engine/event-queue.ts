/**
 * @file Events from the engine's loop to one reader, in order, ended by `end` or a failure.
 *
 * Never waits for the reader; what is not read yet is kept, at most what one request generates.
 */
export class EventQueue<Event> {
  readonly #events: Event[] = [];
  #isOver = false;
  #failure: unknown = null;
  #wake: () => void = () => {};

  push(event: Event): void {
    this.#events.push(event);
    this.#wake();
  }

  end(): void {
    this.#isOver = true;
    this.#wake();
  }

  fail(failure: unknown): void {
    this.#failure = failure;
    this.end();
  }

  async *read(): AsyncGenerator<Event> {
    for (;;) {
      const event = this.#events.shift();
      if (event !== undefined) {
        yield event;
        continue;
      }
      if (this.#failure !== null) throw this.#failure;
      if (this.#isOver) return;
      await new Promise<void>((resolve) => {
        this.#wake = resolve;
      });
    }
  }
}
