/**
 * @file A message port between two ranks: what is posted at one end comes out at the other.
 *
 * Messages travel as Node serialises them (node:v8), each after its length; a length of 0 is the
 * last one: the port was closed. Who uses the port does not know that ranks lie between.
 */
import { deserialize, serialize } from "node:v8";
import type { MessagePort } from "node:worker_threads";
import type { CpuMemory } from "../../device/cpu/memory.ts";
import { atLeisure } from "../../parallel/communicator/at-leisure.ts";
import type { Communicator } from "../../parallel/communicator/communicator.ts";
import { Arena } from "../../tensor/arena.ts";
import { view } from "../../tensor/view.ts";

/** The way to one other rank. */
export class RankLink {
  readonly #communicator: Communicator;
  readonly #peer: number;
  readonly #outgoing: Arena;
  readonly #incoming: Arena;

  constructor(communicator: Communicator, memory: CpuMemory, peer: number) {
    this.#communicator = communicator;
    this.#peer = peer;
    this.#outgoing = new Arena(memory, "messages to a rank");
    this.#incoming = new Arena(memory, "messages from a rank");
  }

  /** Plain data; one at a time. */
  async send(message: unknown): Promise<void> {
    await this.#sendBytes(serialize(message));
  }

  /** The next message; undefined when the other has closed. One at a time. */
  async receive(): Promise<unknown> {
    using _mark = this.#incoming.mark();
    const length = this.#incoming.allocate("i32", [1, 1]);
    await this.#wait(this.#communicator.receive(length, this.#peer));
    const [numBytes] = view(length) as unknown as [number];
    if (numBytes === 0) return undefined;
    const body = this.#incoming.allocate("u8", [1, numBytes]);
    await this.#wait(this.#communicator.receive(body, this.#peer));
    return deserialize(view(body).slice());
  }

  /** The last message. */
  async close(): Promise<void> {
    await this.#sendBytes(new Uint8Array());
  }

  async #sendBytes(bytes: Uint8Array): Promise<void> {
    using _mark = this.#outgoing.mark();
    const length = this.#outgoing.allocate("i32", [1, 1]);
    view(length)[0] = bytes.length;
    await this.#wait(this.#communicator.send(length, this.#peer));
    if (bytes.length === 0) return;
    const body = this.#outgoing.allocate("u8", [1, bytes.length]);
    view(body).set(bytes);
    await this.#wait(this.#communicator.send(body, this.#peer));
  }

  #wait(operation: ReturnType<Communicator["send"]>): Promise<void> {
    // Engines work in threads of their own: what shows that a rank lives is its process.
    return atLeisure(this.#communicator, operation, "processes");
  }
}

/** Joins a port to the one that the other rank joins, until both are closed. */
export async function joinPort(port: MessagePort, link: RankLink): Promise<void> {
  let sending: Promise<void> = Promise.resolve();
  const next = (send: () => Promise<void>): void => {
    sending = sending.then(send);
    // What failed is thrown at the end, where it is awaited.
    sending.catch(() => port.close());
  };
  const closed = new Promise<void>((resolve) => {
    port.once("close", () => {
      next(() => link.close());
      resolve();
    });
  });
  port.on("message", (message: unknown) => next(() => link.send(message)));
  try {
    for (;;) {
      const message = await link.receive();
      if (message === undefined) break;
      port.postMessage(message);
    }
  } finally {
    port.close();
  }
  await closed;
  await sending;
}
