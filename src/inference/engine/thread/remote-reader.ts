/**
 * @file An engine in the role of prefill at the other end of a port: `answerOn` answers there.
 *
 * When the other side ends, what was asked fails with `engine.closed`, and so does what comes
 * after; whoever asks then reads prompts by itself.
 */
import type { MessagePort } from "node:worker_threads";
import type { PrefixPart, PrefixReader, PrefixRequest } from "../api.ts";
import type { FromEngine } from "./messages.ts";
import { RemoteCalls } from "./remote-calls.ts";

export class RemoteReader implements PrefixReader {
  readonly #port: MessagePort;
  readonly #calls: RemoteCalls;

  constructor(port: MessagePort) {
    this.#port = port;
    this.#calls = new RemoteCalls((message) => port.postMessage(message));
    port.on("message", (message: FromEngine) => this.#calls.receive(message));
    port.on("close", () => this.#calls.fail("its thread has ended"));
    // An engine that has nothing else to wait for may end.
    port.unref();
  }

  async *readPrefix(request: PrefixRequest, signal: AbortSignal): AsyncGenerator<PrefixPart> {
    const calls = this.#calls.call((id) => ({ kind: "readPrefix", id, request }), signal);
    for await (const reply of calls) {
      if (reply.kind === "prefix") yield reply.part;
    }
  }

  close(): void {
    this.#port.close();
  }
}
