/**
 * @file How many requests a caller may make: a bucket that fills evenly, one for each key.
 *
 * Callers are names of keys, a closed set, so there are never more buckets than keys.
 */
import { counted } from "../../base/counted.ts";
import { OperationalError } from "../../base/errors.ts";

interface Bucket {
  tokens: number;
  filledAtMs: number;
}

const MINUTE_MS = 60_000;

export class RateLimit {
  readonly #perMinute: number;
  readonly #now: () => number;
  readonly #buckets = new Map<string, Bucket>();

  /** `perMinute` requests a minute for each caller, as many at once; 0 for no limit. */
  constructor(perMinute: number, now: () => number) {
    this.#perMinute = perMinute;
    this.#now = now;
  }

  /** Count one request of a caller; refuses what is too many, and says when to come again. */
  take(caller: string): void {
    if (this.#perMinute === 0) return;
    const now = this.#now();
    const bucket = this.#buckets.get(caller) ?? { tokens: this.#perMinute, filledAtMs: now };
    const filled = bucket.tokens + ((now - bucket.filledAtMs) * this.#perMinute) / MINUTE_MS;
    const tokens = Math.min(this.#perMinute, filled);
    if (tokens < 1) {
      const retryAfterMs = Math.ceil(((1 - tokens) * MINUTE_MS) / this.#perMinute);
      this.#buckets.set(caller, { tokens, filledAtMs: now });
      throw new OperationalError(
        "serving.rate",
        `more than ${counted(this.#perMinute, "request")} a minute with this key`,
        { retryAfterMs },
      );
    }
    this.#buckets.set(caller, { tokens: tokens - 1, filledAtMs: now });
  }
}
