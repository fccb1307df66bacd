/**
 * @file Optimizer state that lies as the parameters lie: in flat spans, and the slice of each
 * parameter in them.
 *
 * A moment or an average has one value a parameter, at the same place of a span of its own, so that
 * one launch over a flat tensor updates all of it, while checkpoints name the slices as the
 * parameters are named.
 */
import { divExact } from "../base/integers.ts";
import { type SpanName, spanNameOf } from "../model/parameter-layout.ts";
import type { FlatSpan, OwnParameters, Parameter } from "../model/parameters.ts";
import type { Arena } from "../tensor/arena.ts";
import { DTYPE_BYTES, type FloatType } from "../tensor/dtype.ts";
import { type ElementRange, flatSlice } from "../tensor/flat-slice.ts";
import { elementCount, makeTensor, type Tensor } from "../tensor/tensor.ts";

/** One value a parameter, in the layout of a `ParameterSet`. */
export interface StateSpans extends Readonly<Record<SpanName, Tensor<StateType>>> {
  /** What the values are: "firstMoment", "average"; names them in checkpoints. */
  readonly kind: string;
}

/** The parameters' own float type, or bf16 beside f32. */
export type StateType = FloatType | "bf16";

/** Zeros for every parameter, in the parameters' dtype unless another is given. */
export function allocateState(
  parameters: Pick<OwnParameters, SpanName>,
  arena: Arena,
  kind: string,
  dtype?: StateType,
): StateSpans {
  const like = ({ values }: FlatSpan): Tensor<StateType> =>
    arena.allocateZeros(dtype ?? values.dtype, [1, values.columns]);
  return {
    kind,
    decayed: like(parameters.decayed),
    undecayed: like(parameters.undecayed),
    experts: like(parameters.experts),
  };
}

/**
 * Consecutive elements of every span: what one optimizer moves. The state of a part has its length.
 */
export interface OptimizerPart {
  readonly spans: Readonly<Record<SpanName, FlatSpan>>;
  /** Where each begins in its span. */
  readonly first: Readonly<Record<SpanName, number>>;
  /** What of each parameter lies in it, in the order of the set. */
  readonly pieces: readonly OptimizerPiece[];
}

/** Elements of a parameter, from `start` on, that lie in a part. */
export interface OptimizerPiece {
  readonly parameter: Parameter;
  readonly start: number;
  readonly numElements: number;
  /** First element in the part's span. */
  readonly place: number;
}

/** All of the parameters. */
export function wholeOf(parameters: OwnParameters): OptimizerPart {
  const whole = (name: SpanName): ElementRange => ({
    start: 0,
    end: parameters[name].values.columns,
  });
  return partOf(parameters, {
    decayed: whole("decayed"),
    undecayed: whole("undecayed"),
    experts: whole("experts"),
  });
}

/** The part of these elements. */
export function partOf(
  parameters: OwnParameters,
  ranges: Readonly<Record<SpanName, ElementRange>>,
): OptimizerPart {
  const cut = (name: SpanName): FlatSpan => cutSpan(parameters[name], ranges[name]);
  return {
    spans: { decayed: cut("decayed"), undecayed: cut("undecayed"), experts: cut("experts") },
    first: {
      decayed: ranges.decayed.start,
      undecayed: ranges.undecayed.start,
      experts: ranges.experts.start,
    },
    pieces: parameters.list.flatMap((parameter) => {
      const range = ranges[spanNameOf(parameter)];
      const first = elementOf(parameters, parameter);
      const start = Math.max(range.start, first);
      const end = Math.min(range.end, first + elementCount(parameter.value));
      if (start >= end) return [];
      const place = start - range.start;
      return [{ parameter, start: start - first, numElements: end - start, place }];
    }),
  };
}

function cutSpan(span: FlatSpan, { start, end }: ElementRange): FlatSpan {
  return {
    values: flatSlice(span.values, start, end - start),
    get gradients(): Tensor<FloatType> {
      return flatSlice(span.gradients, start, end - start);
    },
  };
}

/** Where a parameter begins in its span. */
export function elementOf(parameters: Pick<OwnParameters, SpanName>, parameter: Parameter): number {
  const { values } = parameters[spanNameOf(parameter)];
  const bytes = parameter.value.byteOffset - values.byteOffset;
  return divExact(bytes, DTYPE_BYTES[values.dtype]);
}

/** The state's values of one parameter, in its shape; of a state of all parameters. */
export function stateSlice(
  parameters: Pick<OwnParameters, SpanName>,
  parameter: Parameter,
  state: StateSpans,
): Tensor<StateType> {
  const span = state[spanNameOf(parameter)];
  const offset = span.byteOffset + elementOf(parameters, parameter) * DTYPE_BYTES[span.dtype];
  return makeTensor(span.memory, span.dtype, parameter.shape, offset);
}
