/**
 * @file AdamW over all parameters: two launches, one for the span that decays and one for the norm
 * gains, that do not.
 *
 * The rule is the kernel's (kernels/adamw). Moments have the parameters' dtype, or are bf16.
 */
import { Random } from "../../base/random.ts";
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

/**
 * How moments are stored: as the parameters are ("f32"), or as bf16 rounded to nearest even or
 * stochastically.
 */
export const MOMENT_FORMATS = ["f32", "bf16", "bf16.stochastic"] as const;
export type MomentFormat = (typeof MOMENT_FORMATS)[number];

/** The format of moments, and the seed that stochastic rounding draws from. */
export interface MomentOptions {
  readonly format: MomentFormat;
  readonly seed: number;
}

const EXACT_MOMENTS: MomentOptions = { format: "f32", seed: 0 };

/** The dtype of moments in a format; the parameters' own where it is undefined. */
export function momentType(format: MomentFormat): "bf16" | undefined {
  return format === "f32" ? undefined : "bf16";
}

/**
 * The seed of one tensor's rounding in `adamw`: numbered tensors of one run draw different bits.
 */
export function roundingOf(
  { format, seed }: MomentOptions,
  tensorNumber: number,
): { readonly roundingSeed?: number } {
  if (format !== "bf16.stochastic") return {};
  return { roundingSeed: new Random(seed, `moments ${tensorNumber}`).uint32() };
}

export class AdamW implements Optimizer {
  readonly state: readonly StateSpans[];
  readonly #device: Device;
  readonly #parameters: ParameterSet;
  readonly #settings: AdamWSettings;
  readonly #firstMoment: StateSpans;
  readonly #secondMoment: StateSpans;
  readonly #moments: MomentOptions;

  /** Allocates the moments from `arena`, which must outlive the optimizer. */
  constructor(
    device: Device,
    arena: Arena,
    parameters: ParameterSet,
    settings: AdamWSettings,
    moments: MomentOptions = EXACT_MOMENTS,
  ) {
    this.#device = device;
    this.#parameters = parameters;
    this.#settings = settings;
    this.#moments = moments;
    const dtype = momentType(moments.format);
    this.#firstMoment = allocateState(parameters, arena, "firstMoment", dtype);
    this.#secondMoment = allocateState(parameters, arena, "secondMoment", dtype);
    this.state = [this.#firstMoment, this.#secondMoment];
  }

  update(update: OptimizerUpdate): void {
    const { beta1, beta2, epsilon, weightDecay } = this.#settings;
    for (const [number, span] of SPAN_NAMES.entries()) {
      adamw(this.#device, {
        parameter: this.#parameters[span].values,
        gradient: this.#parameters[span].gradients,
        firstMoment: this.#firstMoment[span],
        secondMoment: this.#secondMoment[span],
        beta1,
        beta2,
        epsilon,
        weightDecay: span === "decayed" ? weightDecay : 0,
        ...roundingOf(this.#moments, number),
        ...update,
      });
    }
  }
}
