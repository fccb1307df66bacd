/**
 * @file Where a tensor of a checkpoint stands in the model: rows of a parameter, or a routing bias.
 *
 * Fused and stacked parameters are taken apart by rows, so every stored matrix is one contiguous
 * range of rows (or, in GGUF, a list of such ranges), and a writer can stream without rearranging
 * anything.
 */
import { assert, defined } from "../base/errors.ts";
import type { FloatType } from "../tensor/dtype.ts";
import { sliceRows, type Tensor } from "../tensor/tensor.ts";
import { view } from "../tensor/view.ts";
import type { GateBias } from "./model-types.ts";
import type { ParameterSet } from "./parameters.ts";

/** Rows [rowStart, rowEnd) of a parameter. */
export interface ParameterRows {
  readonly kind: "rows";
  readonly parameter: string;
  readonly rowStart: number;
  readonly rowEnd: number;
}

/** The routing bias of a layer. */
export interface BiasOf {
  readonly kind: "gateBias";
  readonly layerIndex: number;
}

export type TensorPlace = ParameterRows | BiasOf;

/** What holds the values: a model, or an average of one. */
export interface ModelState {
  readonly parameters: Pick<ParameterSet, "get">;
  readonly gateBiases: readonly GateBias[];
}

/** The values of a place, to read or to fill. */
export function tensorAt(state: ModelState, place: TensorPlace): Tensor<FloatType> {
  if (place.kind === "rows") {
    return sliceRows(state.parameters.get(place.parameter).value, place.rowStart, place.rowEnd);
  }
  const entry = state.gateBiases.find(({ layerIndex }) => layerIndex === place.layerIndex);
  return defined(entry, `routing bias of layer ${place.layerIndex}`).bias;
}

/** The same as a typed array over device memory; f32 models only. */
export function viewAt(state: ModelState, place: TensorPlace): Float32Array<SharedArrayBuffer> {
  const tensor = tensorAt(state, place);
  assert(tensor.dtype === "f32", `checkpoints hold f32 models, not ${tensor.dtype}`);
  return view(tensor as Tensor<"f32">);
}
