/**
 * @file What ranks say to each other: messages and collectives over tensors of their own memory.
 *
 * A call only issues work and returns an `Operation`; nothing waits but `wait`, `split` and
 * `close`. Until an operation is done its tensors belong to the communicator. All members of a
 * communicator issue collectives in the same order; messages between two ranks on one channel
 * match in the order of issue, those on different channels in any.
 *
 * Results do not depend on timing: sums run in the order of ranks, in f64, and are rounded once.
 * Narrow formats travel as bytes.
 *
 * It is fail-stop. When a rank is lost, hangs or gives up, every wait of every other rank throws
 * an `OperationalError` that names it; nothing can be done with the communicator afterwards.
 *
 * Room for NCCL: there an operation is work on a stream, `group` is ncclGroupStart and -End, and
 * `wait` orders streams. Code that waits before it reads works on all three.
 */
import type { Tensor } from "../../tensor/tensor.ts";

export const BACKENDS = ["threads", "mpi", "nccl"] as const;
export type Backend = (typeof BACKENDS)[number];

/**
 * What a rank that waits asks of the others: that their processes live, or also that their programs
 * show signs of life.
 */
export type Judged = "processes" | "ranks";

/** Work that has been issued. */
export interface Operation {
  /** Looks, moves on what can be moved, and does not wait. */
  isDone(): boolean;
  /** Judges ranks if it is left out. */
  wait(judged?: Judged): void;
}

export const REDUCTIONS = ["sum", "max", "min"] as const;
export type Reduction = (typeof REDUCTIONS)[number];

export interface AllToAll {
  /** Parts for rank 0, 1, …, `sendCounts` elements each, one after the other. */
  readonly source: Tensor;
  readonly sendCounts: ArrayLike<number>;
  /** Parts from rank 0, 1, …, `receiveCounts` elements each. */
  readonly target: Tensor;
  readonly receiveCounts: ArrayLike<number>;
}

export interface Communicator {
  readonly backend: Backend;
  readonly name: string;
  /** This rank's number among the members. */
  readonly rank: number;
  readonly size: number;
  /** `channel` is a number below `USER_CHANNELS`. */
  send(source: Tensor, to: number, channel?: number): Operation;
  /** The message has exactly the bytes of `target`; another length is a failure. */
  receive(target: Tensor, from: number, channel?: number): Operation;
  /** One operation of all that `issue` issues on this communicator. */
  group(issue: () => void): Operation;
  allToAll(call: AllToAll): Operation;
  /**
   * `source` has a part for each rank, this rank's is reduced into `target`: parts of as many
   * elements as `target` has, or of `counts`. The target may be its own place in the source.
   */
  reduceScatter(
    source: Tensor,
    target: Tensor,
    reduction: Reduction,
    counts?: readonly number[],
  ): Operation;
  /**
   * `target` takes a part from each rank, of as many elements as `source` has, or of `counts`. The
   * source may be its own place in the target.
   */
  allGather(source: Tensor, target: Tensor, counts?: readonly number[]): Operation;
  /** In place where `source` and `target` are the same. */
  allReduce(source: Tensor, target: Tensor, reduction: Reduction): Operation;
  broadcast(tensor: Tensor, root: number): Operation;
  barrier(): Operation;
  /**
   * Collective, waits: members of one colour form a communicator, ordered by `key`, then by rank.
   * null: this rank joins none.
   */
  split(colour: number | null, key: number, name: string): Communicator | null;
  /**
   * For a rank that waits by asking `isDone` again and again: throws if another one is lost, as
   * `wait` does.
   */
  watch(judged: Judged): void;
  /** Says that this rank works although it does not communicate; the watchdog listens. */
  tick(): void;
}

/** Channels of one communicator; those from `USER_CHANNELS` on are the collectives' own. */
export const MAX_CHANNELS = 512;
export const USER_CHANNELS = 500;
