/**
 * @file Learning-rate schedules as values: a warm-up in steps, then phases along the progress of
 * the run.
 *
 * Progress is the share of the training tokens consumed before a step, in [0, 1]: the published
 * recipes give their boundaries in tokens, and with a batch ramp steps and tokens do not grow
 * together. The warm-up counts steps and multiplies what the phases say, so the first steps do not
 * depend on how long the run will be.
 *
 * Sources: DeepSeek-V3 report §4.2 (`v3`); MiniCPM §4 (`wsd`: warm-up, stable, decay, linear or
 * 1−√).
 */
import { assert } from "../base/errors.ts";

export const LEARNING_RATE_SHAPES = ["v3", "wsd", "cosine", "constant"] as const;
export type LearningRateShape = (typeof LEARNING_RATE_SHAPES)[number];

export const DECAY_CURVES = ["linear", "sqrt"] as const;
export type DecayCurve = (typeof DECAY_CURVES)[number];

/** One stretch of progress, up to `until`; the rate goes from `from` to `to` along `curve`. */
export interface RatePhase {
  readonly until: number;
  readonly curve: "constant" | "cosine" | DecayCurve;
  readonly from: number;
  readonly to: number;
}

/** The whole schedule: plain data, to be printed, drawn and compared. */
export interface LearningRateSchedule {
  readonly warmupSteps: number;
  readonly phases: readonly RatePhase[];
}

/** What a user sets; every shape reads the fields it needs. */
export interface LearningRateSettings {
  readonly shape: LearningRateShape;
  readonly peak: number;
  /** Steps of the linear rise from 0. */
  readonly warmupSteps: number;
  /**
   * The last rate over the peak (`wsd`, `cosine`), the rate after the cosine over the peak (`v3`).
   */
  readonly finalFraction: number;
  /** `wsd`: the share of the run that decays, at its end. */
  readonly decayFraction: number;
  /** `wsd`: how the rate falls. */
  readonly decayCurve: DecayCurve;
  /**
   * `v3`: progress at which the cosine begins, at which it ends, and at which the second tail
   * begins.
   */
  readonly cosineFrom: number;
  readonly cosineUntil: number;
  readonly lastTailFrom: number;
  /** `v3`: the rate of the second tail over the peak. */
  readonly lastTailFraction: number;
}

/**
 * The published schedule of DeepSeek-V3: its boundaries at 10 T, 14.3 T and 14.633 T of 14.8 T
 * tokens.
 */
export const V3_LEARNING_RATE: LearningRateSettings = {
  shape: "v3",
  peak: 2.2e-4,
  warmupSteps: 2000,
  finalFraction: 0.1,
  decayFraction: 0.2,
  decayCurve: "linear",
  cosineFrom: 10 / 14.8,
  cosineUntil: 14.3 / 14.8,
  lastTailFrom: 14.633 / 14.8,
  lastTailFraction: 7.3 / 220,
};

/** The schedule that these settings describe. */
export function makeSchedule(settings: LearningRateSettings): LearningRateSchedule {
  const { peak, warmupSteps } = settings;
  const last = peak * settings.finalFraction;
  const constant = (rate: number, until: number): RatePhase => ({
    until,
    curve: "constant",
    from: rate,
    to: rate,
  });
  const phases: Record<LearningRateShape, () => RatePhase[]> = {
    constant: () => [constant(peak, 1)],
    cosine: () => [{ until: 1, curve: "cosine", from: peak, to: last }],
    wsd: () => [
      constant(peak, 1 - settings.decayFraction),
      { until: 1, curve: settings.decayCurve, from: peak, to: last },
    ],
    v3: () => [
      constant(peak, settings.cosineFrom),
      { until: settings.cosineUntil, curve: "cosine", from: peak, to: last },
      constant(last, settings.lastTailFrom),
      constant(peak * settings.lastTailFraction, 1),
    ],
  };
  return { warmupSteps, phases: phases[settings.shape]() };
}

/** The rate of 0-based `step`, before which `progress` of the run's tokens were consumed. */
export function learningRateAt(
  schedule: LearningRateSchedule,
  position: { readonly step: number; readonly progress: number },
): number {
  const { step, progress } = position;
  assert(step >= 0, `step (${step}) must be >= 0`);
  assert(progress >= 0 && progress <= 1, `progress (${progress}) must lie in [0, 1]`);
  const warmth = Math.min(1, (step + 1) / Math.max(1, schedule.warmupSteps));
  return warmth * phaseRate(schedule.phases, progress);
}

function phaseRate(phases: readonly RatePhase[], progress: number): number {
  let start = 0;
  for (const phase of phases) {
    if (progress < phase.until) {
      const along = (progress - start) / (phase.until - start);
      return phase.from + (phase.to - phase.from) * CURVES[phase.curve](along);
    }
    start = phase.until;
  }
  return phases[phases.length - 1]!.to;
}

/** Share of the way from `from` to `to`, after `x` of the phase. */
const CURVES: Readonly<Record<RatePhase["curve"], (x: number) => number>> = {
  constant: () => 0,
  linear: (x) => x,
  sqrt: (x) => Math.sqrt(x),
  cosine: (x) => (1 - Math.cos(Math.PI * x)) / 2,
};

/**
 * A value that changes once, such as the weight of the MTP loss: `first` until `switchAt`, then
 * `last`.
 */
export interface SwitchedValue {
  readonly first: number;
  readonly last: number;
  /** Progress at which `last` begins; 1 for never. */
  readonly switchAt: number;
}

/** The value at `progress`. */
export function switchedValueAt(value: SwitchedValue, progress: number): number {
  return progress < value.switchAt ? value.first : value.last;
}
