/**
 * @file What a pipeline stage is to the executor: three pieces of work on a micro-batch.
 *
 * A piece of work that communicates is divided where it waits: it issues the communication, yields
 * the operation, and goes on when the operation is done. One that does not communicate does all of
 * its work at once and yields nothing (`[]` will do). In a pair the executor alternates between two
 * such sequences, so that one computes while the other's messages are under way. A mixture of
 * experts that yields after issuing dispatch and after issuing combine, forward and backward, runs
 * a pair in the order of the DeepSeek-V3 report, §3.2.1:
 *
 *     attention F ‖ combine B,  MLP B ‖ dispatch F,  MLP F ‖ dispatch B,  attention B, W ‖ combine
 *     F
 *
 * Where that does not last until the messages have come, pieces of the weights' gradients fill the
 * time (`fillWait`).
 *
 * Tensors of a call belong to the executor. The input stays as it is until the micro-batch's last
 * backward of this stage is over; everything else a stage needs later it copies or saves itself.
 */
import type { DType } from "../../../tensor/dtype.ts";
import type { Tensor } from "../../../tensor/tensor.ts";
import type { Operation } from "../../communicator/communicator.ts";

export interface ForwardCall {
  readonly microBatch: number;
  /** What the stage before made; null on the first stage, which knows its tokens. */
  readonly input: Tensor | null;
  /** To be overwritten; null on the last stage, which computes the loss. */
  readonly output: Tensor | null;
}

export interface BackwardCall {
  readonly microBatch: number;
  readonly input: Tensor | null;
  /** Gradient of the output; null on the last stage. May be overwritten. */
  readonly dOutput: Tensor | null;
  /** To be overwritten; null on the first stage. */
  readonly dInput: Tensor | null;
  /**
   * Whether the weights' gradients follow at once: a stage may then compute them on the way, while
   * their operands are in the caches.
   */
  readonly isFull: boolean;
}

/** Work that may wait for communication on its way. */
export type Work = Iterable<Operation>;

export interface Stage {
  forward(call: ForwardCall): Work;
  /** The gradient of the input; what the weights' gradients need is put aside. */
  backwardInput(call: BackwardCall): Work;
  /**
   * While a wait of the micro-batch's full backward, or of what is paired with it, would last: does
   * a piece of `backwardWeight` if one is there, and says whether it was.
   */
  fillWait(microBatch: number): boolean;
  /** Adds this micro-batch's gradients of the weights to what is there. */
  backwardWeight(microBatch: number): void;
}

/** What crosses between stages. */
export interface Boundary {
  readonly dtype: DType;
  readonly shape: readonly number[];
}
