/**
 * @file Muon: momentum whose matrices are orthogonalised before they are applied; AdamW for
 * everything else.
 *
 *     M ← μM + (1 − μ)g
 *     U = μM + (1 − μ)g
 *     W ← W − η (0.2·√max(rows, columns) · NS(U) + λW)
 *
 * NS ignores the scale of U, so this mean form of Nesterov momentum gives the published update. The
 * factor makes the update's root mean square that of AdamW, whose learning rate and weight decay it
 * therefore shares (Moonlight §2.2). One matrix is one projection: fused gate and up rows are two,
 * and every expert has its own. Embedding, head, gate and norm gains stay with AdamW. Needs f32
 * parameters. It moves a part of them, which cuts no matrix. The second moment spans all of it, so
 * that both optimizers have one state format; the part of it that belongs to matrices stays zero.
 *
 * Where moments are bf16, the momentum of matrices is rounded to nearest even as it is stored: a
 * step moves it by 1 − μ, some hundredths, of what it lacks, far more than is rounded away.
 *
 * Sources: K. Jordan et al., Muon (2024); Liu et al., Muon is Scalable for LLM Training (Moonlight,
 * 2025).
 */
import { assert } from "../../base/errors.ts";
import { divExact } from "../../base/integers.ts";
import type { Device } from "../../device/device.ts";
import { accumulate, lerp } from "../../kernels/accumulate/contract.ts";
import { adamw } from "../../kernels/adamw/contract.ts";
import { castRows } from "../../kernels/cast-rows/contract.ts";
import { type SpanName, spanNameOf } from "../../model/parameter-layout.ts";
import type { OwnParameters, Parameter } from "../../model/parameters.ts";
import type { Arena } from "../../tensor/arena.ts";
import { flatSlice } from "../../tensor/flat-slice.ts";
import { elementCount, reshape, type Tensor } from "../../tensor/tensor.ts";
import {
  allocateState,
  elementOf,
  type OptimizerPart,
  type OptimizerPiece,
  type StateSpans,
  type StateType,
} from "../spans.ts";
import {
  type AdamWSettings,
  EXACT_MOMENTS,
  type MomentOptions,
  momentType,
  nearestRow,
  roundingOf,
} from "./adamw.ts";
import { orthogonalize } from "./newton-schulz.ts";
import type { Optimizer, OptimizerUpdate } from "./optimizer.ts";

export interface MuonSettings extends AdamWSettings {
  /** μ */
  readonly momentum: number;
}

/** Root mean square of an AdamW update, as Moonlight measured it. */
const UPDATE_RMS = 0.2;

export class Muon implements Optimizer {
  readonly state: readonly StateSpans[];
  readonly #device: Device;
  readonly #scratch: Arena;
  readonly #part: OptimizerPart;
  readonly #settings: MuonSettings;
  /** The momentum of matrices, the first moment of the rest. */
  readonly #firstMoment: StateSpans;
  /** Of what AdamW moves; zeros for matrices. */
  readonly #secondMoment: StateSpans;
  readonly #moments: MomentOptions;

  /** Allocates its state from `arenas.state`, which must outlive the optimizer. */
  constructor(
    device: Device,
    arenas: { readonly state: Arena; readonly scratch: Arena },
    part: OptimizerPart,
    settings: MuonSettings,
    moments: MomentOptions = EXACT_MOMENTS,
  ) {
    this.#device = device;
    this.#scratch = arenas.scratch;
    this.#part = part;
    this.#settings = settings;
    this.#moments = moments;
    const dtype = momentType(moments.format);
    this.#firstMoment = allocateState(part.spans, arenas.state, "firstMoment", dtype);
    this.#secondMoment = allocateState(part.spans, arenas.state, "secondMoment", dtype);
    this.state = [this.#firstMoment, this.#secondMoment];
  }

  update(update: OptimizerUpdate): void {
    for (const piece of this.#part.pieces) {
      if (isOrthogonalized(piece.parameter)) this.#updateMatrices(piece, update);
      else this.#updateByAdamW(piece, update);
    }
  }

  #updateMatrices(piece: OptimizerPiece, { learningRate, gradientScale }: OptimizerUpdate): void {
    const { momentum, weightDecay } = this.#settings;
    const { parameter, numElements } = piece;
    const columns = parameter.shape[1];
    const matrixRows = divExact(parameter.shape[0], matricesIn(parameter));
    const count = divExact(numElements, matrixRows * columns);
    const shape = [count * matrixRows, columns];
    const { value, gradient, firstMoment } = this.#slices(piece);
    const x = reshape(asF32(value), shape);
    const stored = reshape(firstMoment, shape);
    const factor = UPDATE_RMS * Math.sqrt(Math.max(matrixRows, columns));
    using _mark = this.#scratch.mark();
    const direction = this.#scratch.allocateZeros("f32", shape);
    const moment = this.#opened(stored);
    accumulate(this.#device, { x: reshape(gradient, shape), scale: gradientScale, out: direction });
    lerp(this.#device, { x: direction, weight: 1 - momentum, out: moment });
    lerp(this.#device, { x: moment, weight: momentum, out: direction });
    if (moment !== stored) castRows(this.#device, { x: moment, out: stored });
    orthogonalize(this.#device, { x: direction, count, arena: this.#scratch });
    // Decay joins the direction first: η(factor·NS + λW) = η·factor·(NS + W·λ/factor).
    accumulate(this.#device, { x, scale: weightDecay / factor, out: direction });
    accumulate(this.#device, { x: direction, scale: -learningRate * factor, out: x });
  }

  /** Momentum in f32: itself, or in the scratch. */
  #opened(stored: Tensor<StateType>): Tensor<"f32"> {
    if (stored.dtype !== "bf16") return asF32(stored);
    const opened = this.#scratch.allocate("f32", stored.shape);
    castRows(this.#device, { x: stored, out: opened });
    return opened;
  }

  #updateByAdamW(piece: OptimizerPiece, update: OptimizerUpdate): void {
    const { beta1, beta2, epsilon, weightDecay } = this.#settings;
    const { value, gradient, firstMoment, secondMoment } = this.#slices(piece);
    adamw(this.#device, {
      parameter: value,
      gradient,
      firstMoment,
      secondMoment,
      beta1,
      beta2,
      epsilon,
      weightDecay: piece.parameter.decays ? weightDecay : 0,
      ...roundingOf(this.#moments, piece.parameter.name),
      firstElement: piece.start,
      ...update,
    });
  }

  /** A piece's elements in one row. */
  #slices({ parameter, place, numElements }: OptimizerPiece) {
    const name = spanNameOf(parameter);
    const { values, gradients } = this.#part.spans[name];
    return {
      value: flatSlice(values, place, numElements),
      gradient: flatSlice(gradients, place, numElements),
      firstMoment: flatSlice(this.#firstMoment[name], place, numElements),
      secondMoment: flatSlice(this.#secondMoment[name], place, numElements),
    };
  }
}

/** Where shares of a span may begin, near `element`: at rows of AdamW, not within a matrix. */
export function nearestMatrix(parameters: OwnParameters, span: SpanName, element: number): number {
  const around = parameters.list.findLast(
    (parameter) => spanNameOf(parameter) === span && elementOf(parameters, parameter) <= element,
  );
  if (around === undefined) return element;
  const first = elementOf(parameters, around);
  if (!isOrthogonalized(around)) {
    const within = nearestRow(span, element - first);
    return first + Math.min(elementCount(around.value), within);
  }
  const count = matricesIn(around);
  const each = divExact(around.shape[0], count) * around.shape[1];
  return first + each * Math.min(count, Math.round((element - first) / each));
}

/** Whether Muon, not AdamW, moves the parameter. */
export function isOrthogonalized(parameter: Pick<Parameter, "role">): boolean {
  return parameter.role === "matrix" || parameter.role === "experts";
}

/** Independent matrices, of equal height, that a parameter holds one below the other. */
export function matricesIn({ name, numExperts }: Pick<Parameter, "name" | "numExperts">): number {
  return (name.endsWith(".gateUp") ? 2 : 1) * numExperts;
}

function asF32(tensor: Tensor<StateType>): Tensor<"f32"> {
  assert(tensor.dtype === "f32", "muon: parameters and moments are f32");
  return tensor as Tensor<"f32">;
}
