/**
 * @file AdamW over a part of the parameters, or all: a launch for each span; matrices decay, norm
 * gains do not.
 *
 * The rule is the kernel's (kernels/adamw). Moments have the parameters' dtype, or are bf16.
 */
import { Random } from "../../base/random.ts";
import type { Device } from "../../device/device.ts";
import { adamw, SPAN_COLUMNS } from "../../kernels/adamw/contract.ts";
import { SPAN_NAMES, type SpanName } from "../../model/parameter-layout.ts";
import type { Arena } from "../../tensor/arena.ts";
import { allocateState, type OptimizerPart, type StateSpans } from "../spans.ts";
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

export const EXACT_MOMENTS: MomentOptions = { format: "f32", seed: 0 };

/** The dtype of moments in a format; the parameters' own where it is undefined. */
export function momentType(format: MomentFormat): "bf16" | undefined {
  return format === "f32" ? undefined : "bf16";
}

/**
 * The seed of one tensor's rounding in `adamw`: those of one run draw different bits by what they
 * are called.
 */
export function roundingOf(
  { format, seed }: MomentOptions,
  tensor: number | string,
): { readonly roundingSeed?: number } {
  if (format !== "bf16.stochastic") return {};
  return { roundingSeed: new Random(seed, `moments ${tensor}`).uint32() };
}

/** Where shares of a span may begin, near `element`: at rows of the kernels. */
export function nearestRow(_span: SpanName, element: number): number {
  return Math.round(element / SPAN_COLUMNS) * SPAN_COLUMNS;
}

export class AdamW implements Optimizer {
  readonly state: readonly StateSpans[];
  readonly #device: Device;
  readonly #part: OptimizerPart;
  readonly #settings: AdamWSettings;
  readonly #firstMoment: StateSpans;
  readonly #secondMoment: StateSpans;
  readonly #moments: MomentOptions;

  /** Allocates the moments from `arena`, which must outlive the optimizer. */
  constructor(
    device: Device,
    arena: Arena,
    part: OptimizerPart,
    settings: AdamWSettings,
    moments: MomentOptions = EXACT_MOMENTS,
  ) {
    this.#device = device;
    this.#part = part;
    this.#settings = settings;
    this.#moments = moments;
    const dtype = momentType(moments.format);
    this.#firstMoment = allocateState(part.spans, arena, "firstMoment", dtype);
    this.#secondMoment = allocateState(part.spans, arena, "secondMoment", dtype);
    this.state = [this.#firstMoment, this.#secondMoment];
  }

  update(update: OptimizerUpdate): void {
    const { beta1, beta2, epsilon, weightDecay } = this.#settings;
    for (const [number, span] of SPAN_NAMES.entries()) {
      adamw(this.#device, {
        parameter: this.#part.spans[span].values,
        gradient: this.#part.spans[span].gradients,
        firstMoment: this.#firstMoment[span],
        secondMoment: this.#secondMoment[span],
        beta1,
        beta2,
        epsilon,
        weightDecay: span === "undecayed" ? 0 : weightDecay,
        ...roundingOf(this.#moments, number),
        firstElement: this.#part.first[span],
        ...update,
      });
    }
  }
}
