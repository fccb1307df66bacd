/**
 * @file ZeRO-1: every rank has all parameters and gradients, and the optimizer state of its share.
 *
 *     gradients   reduce-scatter: rank r holds the sums of share r, added up in the order of ranks
 *     moments     of share r, on rank r alone: 1/n of the memory
 *     values      share r moved by rank r, then all-gather
 *
 * A share is consecutive elements of each span, cut where the optimizer allows: at rows of its
 * kernels for AdamW, whose shares are then equal within such a row, and between matrices for Muon.
 * Routed experts have other copies than the rest where expert parallelism divides them, hence two
 * groups. Sums run in f64 in the order of ranks and are rounded once, so that every run of one
 * layout has the same bits. Sources: Rajbhandari et al., ZeRO (2020), stage 1; DeepSeek-V3 §3.1.
 */
import { assert } from "../../base/errors.ts";
import { SPAN_NAMES, type SpanName } from "../../model/parameter-layout.ts";
import type { OwnParameters } from "../../model/parameters.ts";
import type { Communicator } from "../../parallel/communicator/communicator.ts";
import type { Arena } from "../../tensor/arena.ts";
import type { ElementRange } from "../../tensor/flat-slice.ts";
import type { Tensor } from "../../tensor/tensor.ts";
import { view } from "../../tensor/view.ts";
import type { ExpertCopies } from "../expert-balance/expert-copies.ts";
import {
  allocateState,
  type OptimizerPart,
  type OptimizerPiece,
  partOf,
  type StateSpans,
  type StateType,
} from "../spans.ts";
import type { Replicas } from "./replicas.ts";

/** Ranks with the same parameters; those of a mesh. */
export interface ReplicaGroups {
  /** All that have the parameters outside of experts; they share the micro-batches. */
  readonly replicas: Communicator;
  /** Those among them that have the same routed experts. */
  readonly dp: Communicator;
}

/** The nearest place to `element` where a share of the span may begin; keeps the order. */
export type CutRule = (span: SpanName, element: number) => number;

export interface ShardingOptions {
  readonly nearestCut: CutRule;
  /** Used within calls. */
  readonly scratch: Arena;
  /** Of experts that have several, on the ranks that share experts. */
  readonly copies?: ExpertCopies | null;
}

export class ShardedReplicas implements Replicas {
  readonly rank: number;
  readonly size: number;
  readonly inStep: boolean;
  readonly part: OptimizerPart;
  readonly expertParts: readonly ElementRange[];
  readonly #groups: ReplicaGroups;
  readonly #parameters: OwnParameters;
  readonly #scratch: Arena;
  readonly #copies: ExpertCopies | null;
  /** Elements of each rank's share. */
  readonly #counts: Readonly<Record<SpanName, readonly number[]>>;

  constructor(
    groups: ReplicaGroups,
    parameters: OwnParameters,
    { nearestCut, scratch, copies = null }: ShardingOptions,
  ) {
    this.#copies = copies;
    this.rank = groups.replicas.rank;
    this.size = groups.replicas.size;
    this.inStep = groups.dp.size < groups.replicas.size;
    this.#groups = groups;
    this.#parameters = parameters;
    this.#scratch = scratch;
    const ranges = (span: SpanName): ElementRange[] => {
      const length = parameters[span].values.columns;
      return shares(length, this.#group(span).size, (element) => nearestCut(span, element));
    };
    const all = {
      decayed: ranges("decayed"),
      undecayed: ranges("undecayed"),
      experts: ranges("experts"),
    };
    const mine = (span: SpanName): ElementRange => all[span][this.#group(span).rank]!;
    this.part = partOf(parameters, {
      decayed: mine("decayed"),
      undecayed: mine("undecayed"),
      experts: mine("experts"),
    });
    this.expertParts = all.experts;
    this.#counts = {
      decayed: all.decayed.map(lengthOf),
      undecayed: all.undecayed.map(lengthOf),
      experts: all.experts.map(lengthOf),
    };
  }

  sumGradients(): void {
    this.#copies?.sumGradients();
    const sums = SPAN_NAMES.map((span) => {
      const { gradients } = this.#parameters[span];
      const mine = this.part.spans[span].gradients;
      return this.#group(span).reduceScatter(gradients, mine, "sum", this.#counts[span]);
    });
    for (const sum of sums) sum.wait();
  }

  gatherValues(): void {
    const gathered = SPAN_NAMES.map((span) => {
      const mine = this.part.spans[span].values;
      return this.#gather(span, mine, this.#parameters[span].values);
    });
    for (const operation of gathered) operation.wait();
  }

  countedPieces(): readonly OptimizerPiece[] {
    return this.#copies?.countedPieces(this.part) ?? this.part.pieces;
  }

  sum(values: Float64Array): Float64Array {
    using _mark = this.#scratch.mark();
    const tensor = this.#scratch.allocate("f64", [values.length]);
    view(tensor).set(values);
    this.#groups.replicas.allReduce(tensor, tensor, "sum").wait();
    return view(tensor).slice();
  }

  sumParts(values: Float64Array): Float64Array {
    return this.sum(values);
  }

  gatherState(part: StateSpans): StateSpans {
    const whole = allocateState(this.#parameters, this.#scratch, part.kind, part.decayed.dtype);
    for (const span of SPAN_NAMES) this.#gather(span, part[span], whole[span]).wait();
    return whole;
  }

  takeState(whole: StateSpans, part: StateSpans): void {
    assert(whole.kind === part.kind, `${whole.kind} is not ${part.kind}`);
    for (const span of SPAN_NAMES) {
      const first = this.part.first[span];
      const values: Float32Array | Float64Array | Uint16Array = view(whole[span]);
      view(part[span]).set(values.subarray(first, first + part[span].columns));
    }
  }

  tick(): void {
    this.#groups.replicas.tick();
  }

  #group(span: SpanName): Communicator {
    return span === "experts" ? this.#groups.dp : this.#groups.replicas;
  }

  #gather(span: SpanName, mine: Tensor<StateType>, whole: Tensor<StateType>) {
    return this.#group(span).allGather(mine, whole, this.#counts[span]);
  }
}

/** Equal shares of `length` elements, but for where they may be cut. */
function shares(length: number, count: number, cut: (element: number) => number): ElementRange[] {
  const ends = Array.from({ length: count }, (_, index) =>
    index + 1 === count
      ? length
      : Math.min(length, cut(Math.round((length * (index + 1)) / count))),
  );
  return ends.map((end, index) => ({ start: ends[index - 1] ?? 0, end }));
}

function lengthOf({ start, end }: ElementRange): number {
  return end - start;
}
