/** @file Timing on a noisy machine: many short samples, medians, never a mean. */
import { median } from "../../base/median.ts";

/** What repeated runs took, in seconds a run. */
export interface Timing {
  readonly median: number;
  readonly best: number;
  readonly samples: number;
}

const MIN_SAMPLE_SECONDS = 0.01;
const MIN_SAMPLES = 5;

/** Run `work` for about `seconds` after one untimed run, in samples of at least 10 ms. */
export function timeRuns(work: () => void, seconds: number): Timing {
  work();
  const samples: number[] = [];
  const end = performance.now() + seconds * 1000;
  let runsPerSample = 1;
  while (performance.now() < end || samples.length < MIN_SAMPLES) {
    const start = performance.now();
    for (let run = 0; run < runsPerSample; run++) work();
    const elapsed = (performance.now() - start) / 1000;
    if (elapsed < MIN_SAMPLE_SECONDS && runsPerSample < 2 ** 20) {
      runsPerSample = Math.ceil(runsPerSample * Math.max(2, MIN_SAMPLE_SECONDS / (elapsed + 1e-9)));
      runsPerSample = Math.min(runsPerSample, 2 ** 20);
      continue;
    }
    samples.push(elapsed / runsPerSample);
  }
  return { median: median(samples), best: Math.min(...samples), samples: samples.length };
}

/** Turns after the first, in which memory is touched and code is made. */
const TURNS = 9;

/**
 * Runs `work` beside others, one run of each a turn; for works of more than a few milliseconds.
 * What it took, and in each turn the time of the fastest other as a share of its own.
 */
export function timeBeside(
  work: () => void,
  others: readonly (() => void)[],
): { readonly ours: readonly number[]; readonly shares: readonly number[] } {
  const secondsOf = (run: () => void): number => {
    const start = performance.now();
    run();
    return (performance.now() - start) / 1000;
  };
  const turns = Array.from({ length: 1 + TURNS }, () => {
    const ours = secondsOf(work);
    return { ours, share: Math.min(...others.map(secondsOf)) / ours };
  }).slice(1);
  return { ours: turns.map(({ ours }) => ours), shares: turns.map(({ share }) => share) };
}
