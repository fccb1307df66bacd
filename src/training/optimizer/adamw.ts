/**
 * @file AdamW over all parameters: two launches, one for the span that decays and one for the norm
 * gains, that do not.
 *
 * The rule is the kernel's (kernels/adamw). Moments are f32, or f64 with f64 parameters.
 */
import type { Device } from "../../device/device.ts";
import { adamw } from "../../kernels/adamw/contract.ts";
import type { ParameterSet } from "../../model/parameters.ts";
import type { Arena } from "../../tensor/arena.ts";
import { allocateState, SPAN_NAMES, type StateSpans } from "../spans.ts";
import type { Optimizer, OptimizerUpdate } from "./optimizer.ts";

export interface AdamWSettings {
  readonly beta1: number;
  readonly beta2: number;
  readonly epsilon: number;
  readonly weightDecay: number;
}

export class AdamW implements Optimizer {
  readonly state: readonly StateSpans[];
  readonly #device: Device;
  readonly #parameters: ParameterSet;
  readonly #settings: AdamWSettings;
  readonly #firstMoment: StateSpans;
  readonly #secondMoment: StateSpans;

  /** Allocates the moments from `arena`, which must outlive the optimizer. */
  constructor(device: Device, arena: Arena, parameters: ParameterSet, settings: AdamWSettings) {
    this.#device = device;
    this.#parameters = parameters;
    this.#settings = settings;
    this.#firstMoment = allocateState(parameters, arena, "firstMoment");
    this.#secondMoment = allocateState(parameters, arena, "secondMoment");
    this.state = [this.#firstMoment, this.#secondMoment];
  }

  update(update: OptimizerUpdate): void {
    const { beta1, beta2, epsilon, weightDecay } = this.#settings;
    for (const span of SPAN_NAMES) {
      adamw(this.#device, {
        parameter: this.#parameters[span].values,
        gradient: this.#parameters[span].gradients,
        firstMoment: this.#firstMoment[span],
        secondMoment: this.#secondMoment[span],
        beta1,
        beta2,
        epsilon,
        weightDecay: span === "decayed" ? weightDecay : 0,
        ...update,
      });
    }
  }
}
