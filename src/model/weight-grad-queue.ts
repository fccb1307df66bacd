/**
 * @file The queue of weight gradients: backward passes put work here, a schedule decides when it
 * runs.
 *
 *     gradient_MN += a_TMᵀ · b_TN            a: gradient of a layer's output, b: its input
 *     gradient_GMN[g] += the same over the rows of expert g       with `offsets`
 *
 * The queue owns the memory of the operands: layers allocate them from `arena`, and `run` gives it
 * back. Operands from elsewhere must keep their values until then. `settle` marks a good moment: it
 * runs the queue unless a schedule defers it (zero-bubble pipelines fill their bubbles with `run`).
 * Order of execution is order of pushing.
 */
import { assert } from "../base/errors.ts";
import type { Device } from "../device/device.ts";
import { groupedMatmul } from "../kernels/grouped-matmul/contract.ts";
import { groupedScaledMatmul } from "../kernels/grouped-scaled-matmul/contract.ts";
import { matmul } from "../kernels/matmul/contract.ts";
import { type SumRule, scaledMatmul } from "../kernels/scaled-matmul/contract.ts";
import type { Arena, ArenaMark } from "../tensor/arena.ts";
import type { FloatType } from "../tensor/dtype.ts";
import type { Tensor } from "../tensor/tensor.ts";
import { isScaled, type Operand } from "./operand.ts";

export interface WeightGrad {
  readonly a: Operand;
  readonly b: Operand;
  readonly gradient: Tensor<FloatType>;
  /** First row of each expert, [1, G+1]; the gradient is then stacked [G·M, N]. */
  readonly offsets?: Tensor<"i32">;
  /** How products of scaled operands are summed. */
  readonly sum?: SumRule;
}

export class WeightGradQueue {
  readonly arena: Arena;
  /** While true, `settle` does nothing. */
  deferred = false;
  readonly #device: Device;
  readonly #pending: WeightGrad[] = [];
  #mark: ArenaMark;

  constructor(device: Device, arena: Arena) {
    this.#device = device;
    this.arena = arena;
    this.#mark = arena.mark();
  }

  push(work: WeightGrad): void {
    this.#pending.push(work);
  }

  get numPending(): number {
    return this.#pending.length;
  }

  /** Run the first of what was pushed and has not run; false if there is none. */
  runNext(): boolean {
    const work = this.#pending.shift();
    if (work === undefined) return false;
    this.#multiply(work);
    return true;
  }

  /** Run everything that was pushed and has not run, in order, and release all operands. */
  run(): void {
    for (const work of this.#pending) this.#multiply(work);
    this.#pending.length = 0;
    this.#mark[Symbol.dispose]();
    this.#mark = this.arena.mark();
  }

  #multiply({ a, b, gradient, offsets, sum }: WeightGrad): void {
    const device = this.#device;
    const tn = { transposition: "tn", accumulate: true } as const;
    if (isScaled(a) && isScaled(b)) {
      const call = { ...tn, a, b, out: gradient as Tensor<"f32">, ...sum };
      if (offsets === undefined) scaledMatmul(device, call);
      else groupedScaledMatmul(device, { ...call, offsets });
      return;
    }
    assert(!isScaled(a) && !isScaled(b), "both operands of a weight gradient are scaled, or none");
    const call = { ...tn, a, b, out: gradient };
    if (offsets === undefined) matmul(device, call);
    else groupedMatmul(device, { ...call, offsets });
  }

  settle(): void {
    if (!this.deferred) this.run();
  }

  /** Assert that nothing was left behind at the end of a step. */
  assertEmpty(): void {
    assert(this.#pending.length === 0, `${this.#pending.length} weight gradients never ran`);
  }
}
