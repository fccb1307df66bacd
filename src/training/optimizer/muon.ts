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
 * parameters. The second moment spans all parameters, so that both optimizers have one state
 * format; the part of it that belongs to matrices stays zero.
 *
 * Sources: K. Jordan et al., Muon (2024); Liu et al., Muon is Scalable for LLM Training (Moonlight,
 * 2025).
 */
import { assert } from "../../base/errors.ts";
import { divExact } from "../../base/integers.ts";
import type { Device } from "../../device/device.ts";
import { accumulate, lerp } from "../../kernels/accumulate/contract.ts";
import { adamw } from "../../kernels/adamw/contract.ts";
import type { ModelConfig } from "../../model/config.ts";
import type { Parameter, ParameterSet } from "../../model/parameters.ts";
import type { Arena } from "../../tensor/arena.ts";
import { reshape, type Tensor } from "../../tensor/tensor.ts";
import { view } from "../../tensor/view.ts";
import { allocateState, type StateSpans, type StateType, stateSlice } from "../spans.ts";
import type { AdamWSettings } from "./adamw.ts";
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
  readonly #parameters: ParameterSet;
  readonly #settings: MuonSettings;
  readonly #config: ModelConfig;
  /** The momentum of matrices, the first moment of the rest. */
  readonly #firstMoment: StateSpans;
  /** Of what AdamW moves; zeros for matrices. */
  readonly #secondMoment: StateSpans;

  /** Allocates its state from `arenas.state`, which must outlive the optimizer. */
  constructor(
    device: Device,
    arenas: { readonly state: Arena; readonly scratch: Arena },
    model: { readonly config: ModelConfig; readonly parameters: ParameterSet },
    settings: MuonSettings,
  ) {
    this.#device = device;
    this.#scratch = arenas.scratch;
    this.#parameters = model.parameters;
    this.#config = model.config;
    this.#settings = settings;
    this.#firstMoment = allocateState(model.parameters, arenas.state, "firstMoment");
    this.#secondMoment = allocateState(model.parameters, arenas.state, "secondMoment");
    this.state = [this.#firstMoment, this.#secondMoment];
  }

  update(update: OptimizerUpdate): void {
    for (const parameter of this.#parameters.list) {
      if (isOrthogonalized(parameter)) this.#updateMatrices(parameter, update);
      else this.#updateByAdamW(parameter, update);
    }
  }

  #updateMatrices(parameter: Parameter, { learningRate, gradientScale }: OptimizerUpdate): void {
    const { momentum, weightDecay } = this.#settings;
    const value = asF32(parameter.value);
    const [rows, columns] = parameter.shape;
    const count = matricesIn(parameter, this.#config);
    const factor = UPDATE_RMS * Math.sqrt(Math.max(divExact(rows, count), columns));
    const moment = asF32(stateSlice(this.#parameters, parameter, this.#firstMoment));
    using _mark = this.#scratch.mark();
    const direction = this.#scratch.allocateZeros("f32", [rows, columns]);
    accumulate(this.#device, { x: parameter.gradient, scale: gradientScale, out: direction });
    lerp(this.#device, { x: direction, weight: 1 - momentum, out: moment });
    lerp(this.#device, { x: moment, weight: momentum, out: direction });
    orthogonalize(this.#device, { x: direction, count, arena: this.#scratch });
    // Decay joins the direction first: η(factor·NS + λW) = η·factor·(NS + W·λ/factor).
    accumulate(this.#device, { x: value, scale: weightDecay / factor, out: direction });
    accumulate(this.#device, { x: direction, scale: -learningRate * factor, out: value });
  }

  #updateByAdamW(parameter: Parameter, update: OptimizerUpdate): void {
    const { beta1, beta2, epsilon, weightDecay } = this.#settings;
    const slice = (state: StateSpans): Tensor<StateType> =>
      flat(stateSlice(this.#parameters, parameter, state));
    adamw(this.#device, {
      parameter: flat(parameter.value),
      gradient: flat(parameter.gradient),
      firstMoment: slice(this.#firstMoment),
      secondMoment: slice(this.#secondMoment),
      beta1,
      beta2,
      epsilon,
      weightDecay: parameter.decays ? weightDecay : 0,
      ...update,
    });
  }
}

/** Whether Muon, not AdamW, moves the parameter. */
export function isOrthogonalized(parameter: Pick<Parameter, "role">): boolean {
  return parameter.role === "matrix" || parameter.role === "experts";
}

/** Independent matrices, of equal height, that a parameter holds one below the other. */
export function matricesIn(
  parameter: Pick<Parameter, "name" | "role">,
  config: Pick<ModelConfig, "numRoutedExperts">,
): number {
  const perPlace = parameter.name.endsWith(".gateUp") ? 2 : 1;
  return perPlace * (parameter.role === "experts" ? config.numRoutedExperts : 1);
}

function flat<D extends StateType>(tensor: Tensor<D>): Tensor<D> {
  return reshape(tensor, [1, view(tensor).length]);
}

function asF32(tensor: Tensor<StateType>): Tensor<"f32"> {
  assert(tensor.dtype === "f32", "muon: parameters and moments are f32");
  return tensor as Tensor<"f32">;
}
