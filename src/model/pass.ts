/**
 * @file What all layers share during one pass over one batch: the device, the arenas, the sequences
 * and their positions.
 *
 * Arenas and lifetimes
 *   saved        what backward needs, and the residual stream: until the step ends
 *   scratch      one call of one layer, under marks
 *   weightGrads  operands of weight gradients that have not run yet: until the queue has run
 *
 * Layers take products' inputs in the compute type C (bf16, or the float type F unrounded) and
 * write F.
 */
import type { Device } from "../device/device.ts";
import type { AttentionProducts } from "../kernels/attention/contract.ts";
import { castRows } from "../kernels/cast-rows/contract.ts";
import type { Work } from "../parallel/communicator/work.ts";
import type { Arena } from "../tensor/arena.ts";
import type { FloatType } from "../tensor/dtype.ts";
import type { Tensor } from "../tensor/tensor.ts";
import type { ComputeType } from "./parameters.ts";
import type { RotaryPositions } from "./rope.ts";
import type { WeightGradQueue } from "./weight-grad-queue.ts";

export interface Pass {
  readonly device: Device;
  readonly floatType: FloatType;
  readonly computeType: ComputeType;
  readonly attention: AttentionProducts;
  readonly saved: Arena;
  readonly scratch: Arena;
  readonly weightGrads: WeightGradQueue;
  readonly numSequences: number;
  readonly seqLength: number;
  readonly positions: RotaryPositions;
  /**
   * Multiplies the gradient of each layer's balance loss; 0: the loss is neither computed nor
   * differentiated.
   */
  readonly balanceScale: number;
  /** Where each MoE layer's `DispatchPlan.offsets` go, for who reads them after the pass. */
  readonly nextOffsets?: () => Tensor<"i32">;
  /** Takes what `amid` is given, where the launches around it are recorded. */
  readonly unrecorded?: (work: WithinPass) => Work<void>;
}

/** Work in arenas of the pass it is given, over tensors of the one that it comes from. */
export type WithinPass = (pass: Pass) => Work<void>;

/**
 * Work whose launches follow from data, amid launches that do not: at once, or each time that those
 * are replayed.
 */
export function amid(pass: Pass, work: WithinPass): Work<void> {
  return pass.unrecorded?.(work) ?? work(pass);
}

/** A copy of `x` in the compute type, allocated from `arena`. */
export function copyToCompute(pass: Pass, arena: Arena, x: Tensor<FloatType>): Tensor<ComputeType> {
  const out = arena.allocate(pass.computeType, [x.rows, x.columns]);
  castRows(pass.device, { x, out });
  return out;
}
