/**
 * @file Optimizer state that lies as the parameters lie: two flat spans, and the slice of each
 * parameter in them.
 *
 * A moment or an average has one value a parameter, at the same place of a span of its own, so that
 * one launch over a flat tensor updates all of it, while checkpoints name the slices as the
 * parameters are named.
 */
import { divExact } from "../base/integers.ts";
import type { FlatSpan, Parameter, ParameterSet } from "../model/parameters.ts";
import type { Arena } from "../tensor/arena.ts";
import { DTYPE_BYTES, type FloatType } from "../tensor/dtype.ts";
import { makeTensor, type Tensor } from "../tensor/tensor.ts";

export const SPAN_NAMES = ["decayed", "undecayed"] as const;
export type SpanName = (typeof SPAN_NAMES)[number];

/** One value a parameter, in the layout of a `ParameterSet`. */
export interface StateSpans {
  /** What the values are: "firstMoment", "average"; names them in checkpoints. */
  readonly kind: string;
  readonly decayed: Tensor<StateType>;
  readonly undecayed: Tensor<StateType>;
}

/** The parameters' own float type, or bf16 beside f32. */
export type StateType = FloatType | "bf16";

/** Zeros for every parameter, in the parameters' dtype unless another is given. */
export function allocateState(
  parameters: Pick<ParameterSet, SpanName>,
  arena: Arena,
  kind: string,
  dtype?: StateType,
): StateSpans {
  const like = ({ values }: FlatSpan): Tensor<StateType> =>
    arena.allocateZeros(dtype ?? values.dtype, [1, values.columns]);
  return { kind, decayed: like(parameters.decayed), undecayed: like(parameters.undecayed) };
}

/** The span a parameter lies in. */
export function spanOf(parameter: Parameter): SpanName {
  return parameter.decays ? "decayed" : "undecayed";
}

/** The state's values of one parameter, in its shape. */
export function stateSlice(
  parameters: Pick<ParameterSet, SpanName>,
  parameter: Parameter,
  state: StateSpans,
): Tensor<StateType> {
  const name = spanOf(parameter);
  const { values } = parameters[name];
  const element = divExact(
    parameter.value.byteOffset - values.byteOffset,
    DTYPE_BYTES[values.dtype],
  );
  const span = state[name];
  const offset = span.byteOffset + element * DTYPE_BYTES[span.dtype];
  return makeTensor(span.memory, span.dtype, parameter.shape, offset);
}
