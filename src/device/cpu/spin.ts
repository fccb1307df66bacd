/** @file How threads wait for each other for a moment before they sleep. */

/** About 100 µs of `Atomics.pause` on current processors. */
export const SPINS = 3000;
/** A thread that died inside a task never leaves it; no task takes nearly this long. */
export const LOST_AFTER_MS: number = 10 * 60_000;

export const pause: () => void =
  (Atomics as unknown as { pause?: () => void }).pause?.bind(Atomics) ?? ((): void => {});
