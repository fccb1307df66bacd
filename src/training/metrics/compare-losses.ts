/**
 * @file How far one run's losses follow another's: the measure of the DeepSeek-V3 report.
 *
 *     smoothed_t = 0.9 · smoothed_{t−1} + 0.1 · loss_t          smoothed_0 = loss_0
 *     error_t    = smoothed_t(run) ÷ smoothed_t(baseline) − 1
 *
 * Source: DeepSeek-V3 report, appendix B.1 (curves smoothed with a coefficient of 0.9).
 */
import { assert } from "../../base/errors.ts";

export const SMOOTHING = 0.9;
/** The beginning that does not count: losses fall too fast to be compared. */
export const WARMUP_SHARE = 0.1;

export interface LossComparison {
  /** After each step. */
  readonly errors: readonly number[];
  /** Largest and mean magnitude after the first tenth, and the last error. */
  readonly largest: number;
  readonly mean: number;
  readonly last: number;
}

/** Exponential moving average, started at the first value. */
export function smooth(losses: readonly number[]): readonly number[] {
  let value = losses[0] ?? 0;
  return losses.map((loss) => {
    value = SMOOTHING * value + (1 - SMOOTHING) * loss;
    return value;
  });
}

/** Compare the losses of two runs of equal length. */
export function compareLosses(
  losses: readonly number[],
  baseline: readonly number[],
): LossComparison {
  assert(losses.length > 0, "runs without steps cannot be compared");
  assert(
    losses.length === baseline.length,
    `runs of ${losses.length} and ${baseline.length} steps`,
  );
  const smoothed = smooth(baseline);
  const errors = smooth(losses).map((loss, step) => loss / smoothed[step]! - 1);
  const counted = errors.slice(Math.floor(WARMUP_SHARE * errors.length)).map(Math.abs);
  return {
    errors,
    largest: counted.reduce((most, error) => Math.max(most, error), 0),
    mean: counted.reduce((sum, error) => sum + error, 0) / counted.length,
    last: errors[errors.length - 1]!,
  };
}
