/**
 * @file A communicator whose operations take longer, as they would on a slower link.
 *
 * An operation is done when it is done and, after it was issued, the time of its bytes has passed:
 * those that leave this rank or those that come, whichever are more. Operations do not wait for
 * each other, and the processor rests meanwhile.
 */
import type {
  AllToAll,
  Backend,
  Communicator,
  Judged,
  Operation,
  Reduction,
} from "../../../parallel/communicator/communicator.ts";
import { DTYPE_BYTES, type DType } from "../../../tensor/dtype.ts";
import { elementCount, type Tensor } from "../../../tensor/tensor.ts";

/** Of all communicators that were split from one. */
export interface SlowLink {
  msPerByte: number;
  /** Of all operations since it was set to 0. */
  numBytes: number;
}

interface Traffic {
  sent: number;
  received: number;
}

export class DelayedCommunicator implements Communicator {
  readonly #inner: Communicator;
  readonly #link: SlowLink;
  #group: Traffic | null = null;

  constructor(inner: Communicator, link: SlowLink) {
    this.#inner = inner;
    this.#link = link;
  }

  get backend(): Backend {
    return this.#inner.backend;
  }

  get name(): string {
    return this.#inner.name;
  }

  get rank(): number {
    return this.#inner.rank;
  }

  get size(): number {
    return this.#inner.size;
  }

  send(source: Tensor, to: number, channel?: number): Operation {
    const sent = to === this.rank ? 0 : bytesOf(source);
    return this.#delayed(this.#inner.send(source, to, channel), { sent, received: 0 });
  }

  receive(target: Tensor, from: number, channel?: number): Operation {
    const received = from === this.rank ? 0 : bytesOf(target);
    return this.#delayed(this.#inner.receive(target, from, channel), { sent: 0, received });
  }

  group(issue: () => void): Operation {
    const traffic = { sent: 0, received: 0 };
    this.#group = traffic;
    const operation = this.#inner.group(issue);
    this.#group = null;
    return this.#delayed(operation, traffic);
  }

  allToAll(call: AllToAll): Operation {
    const { source, sendCounts, receiveCounts } = call;
    return this.#delayed(this.#inner.allToAll(call), {
      sent: this.#bytesOfOthers(source.dtype, sendCounts),
      received: this.#bytesOfOthers(source.dtype, receiveCounts),
    });
  }

  reduceScatter(
    source: Tensor,
    target: Tensor,
    reduction: Reduction,
    counts?: readonly number[],
  ): Operation {
    const sent = bytesOf(source) - bytesOf(target);
    const operation = this.#inner.reduceScatter(source, target, reduction, counts);
    return this.#delayed(operation, { sent, received: 0 });
  }

  allGather(source: Tensor, target: Tensor, counts?: readonly number[]): Operation {
    const received = bytesOf(target) - bytesOf(source);
    return this.#delayed(this.#inner.allGather(source, target, counts), { sent: 0, received });
  }

  allReduce(source: Tensor, target: Tensor, reduction: Reduction): Operation {
    const sent = 2 * bytesOf(source);
    return this.#delayed(this.#inner.allReduce(source, target, reduction), { sent, received: 0 });
  }

  broadcast(tensor: Tensor, root: number): Operation {
    const sent = bytesOf(tensor);
    return this.#delayed(this.#inner.broadcast(tensor, root), { sent, received: 0 });
  }

  barrier(): Operation {
    return this.#inner.barrier();
  }

  split(colour: number | null, key: number, name: string): Communicator | null {
    const part = this.#inner.split(colour, key, name);
    return part === null ? null : new DelayedCommunicator(part, this.#link);
  }

  watch(judged: Judged): void {
    this.#inner.watch(judged);
  }

  tick(): void {
    this.#inner.tick();
  }

  #bytesOfOthers(dtype: DType, counts: ArrayLike<number>): number {
    const elements = Array.from(counts).reduce(
      (sum, count, member) => sum + (member === this.rank ? 0 : count),
      0,
    );
    return elements * DTYPE_BYTES[dtype];
  }

  #delayed(operation: Operation, { sent, received }: Traffic): Operation {
    if (this.#group !== null) {
      this.#group.sent += sent;
      this.#group.received += received;
      return operation;
    }
    const bytes = Math.max(sent, received);
    this.#link.numBytes += bytes;
    const deadline = performance.now() + bytes * this.#link.msPerByte;
    return {
      isDone: () => operation.isDone() && performance.now() >= deadline,
      wait: (judged) => {
        operation.wait(judged);
        const left = deadline - performance.now();
        if (left > 0) Atomics.wait(SLEEP, 0, 0, left);
      },
    };
  }
}

/** Nobody wakes who waits here. */
const SLEEP = new Int32Array(new SharedArrayBuffer(4));

function bytesOf(tensor: Tensor): number {
  return elementCount(tensor) * DTYPE_BYTES[tensor.dtype];
}
