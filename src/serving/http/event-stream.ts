/**
 * @file Server-sent events to one client, no faster than it reads.
 *
 * `send` waits while the socket's buffer is full, which stops the generator behind it; a client
 * that reads nothing for the stall limit is cut off. While nothing is sent, a comment goes out now
 * and then, so that nobody between takes the connection for dead.
 */
import { once } from "node:events";
import type { ServerResponse } from "node:http";

export interface EventStreamOptions {
  readonly keepAliveMs: number;
  /** How long a full buffer may stay full. */
  readonly stallMs: number;
}

export class EventStream implements Disposable {
  readonly #response: ServerResponse;
  readonly #stallMs: number;
  readonly #keepAlive: NodeJS.Timeout;

  constructor(response: ServerResponse, { keepAliveMs, stallMs }: EventStreamOptions) {
    this.#response = response;
    this.#stallMs = stallMs;
    response.writeHead(200, {
      "content-type": "text/event-stream; charset=utf-8",
      "cache-control": "no-cache",
      "x-accel-buffering": "no",
    });
    response.flushHeaders();
    this.#keepAlive = setInterval(() => {
      if (!response.writableNeedDrain) response.write(": keep-alive\n\n");
    }, keepAliveMs);
    this.#keepAlive.unref();
  }

  /** One event; resolves when the client can take the next, or when it is gone. */
  async send(data: string, event?: string): Promise<void> {
    const name = event === undefined ? "" : `event: ${event}\n`;
    this.#keepAlive.refresh();
    if (this.#response.destroyed) return;
    if (!this.#response.write(`${name}data: ${data}\n\n`)) await this.#drain();
  }

  async #drain(): Promise<void> {
    const response = this.#response;
    const settled = new AbortController();
    const timer = setTimeout(() => response.destroy(), this.#stallMs);
    try {
      const { signal } = settled;
      await Promise.race([
        once(response, "drain", { signal }),
        once(response, "close", { signal }),
      ]);
    } finally {
      clearTimeout(timer);
      settled.abort();
    }
  }

  end(): void {
    this.#response.end();
  }

  [Symbol.dispose](): void {
    clearInterval(this.#keepAlive);
  }
}
