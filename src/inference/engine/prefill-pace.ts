/**
 * @file How many tokens of prompts a step takes beside streams, by the time that steps took: it
 * decides how fast a prompt is read, never which tokens come.
 *
 *     a step beside streams should take (1 + SHARE) times what it takes the streams alone
 *
 * What the streams alone take is measured in steps that read no prompt; while prompts are read, one
 * step in 64 is given to that. What a prompt token adds follows the last few steps: it grows with
 * the prompt's length, and falls with the chunk's, whose first tokens cost most. Where 32
 * steps of the streams take no more than 200 ms, or hardly a token fits beside them, a prompt is
 * read in bursts instead: one step in 32 takes many tokens, for at most 50 ms, and the others none;
 * so 19 of 20 tokens of a stream come as if it were alone. Chunks have few sizes, so that passes of
 * the same shape come again: the decoder replays those.
 */
import { floorDiv } from "../../base/integers.ts";

/** Leaves room below twice: for noise, and for caches that a prompt's latents have swept. */
const SHARE = 0.5;
const REFRESH_STEPS = 64;
/** How far what is known moves towards what a step took: a median, which outliers do not move. */
const MOVE = 1.15;
/** Below this, the first token of a chunk costs more than all others. */
const CHUNK_LEAST = 4;
/** From here on it hardly counts. */
const CHUNK_FULL = 32;
/** Steps from one burst to the next, and after how many bursts a small chunk is tried again. */
const BURST_EVERY = 32;
const BURSTS_TO_TRIAL = 6;
/** What a burst takes: by feel a pause that nobody sees, and a share of the steps between two. */
const BURST_MS_MAX = 50;
const BURST_SHARE = 0.8;
/** A pause is short beside the time between two. */
const BETWEEN_BURSTS_MS_MAX = 200;

type Kind = "small" | "burst";

export class PrefillPace {
  /** Milliseconds of a step without prompts, by the number of streams in it. */
  readonly #streamsMs = new Map<number, number>();
  /** Milliseconds that a prompt token adds, in small chunks and in bursts. */
  readonly #tokenMs: Record<Kind, number | undefined> = { small: undefined, burst: undefined };
  #stepsSincePlain = 0;
  #stepsSinceBurst = BURST_EVERY;
  #burstsSinceTrial = 0;
  /** What the step that was planned last reads. */
  #kind: Kind = "small";

  /** Prompt tokens for the next step beside `numStreams` >= 1 streams; 0: the streams alone. */
  chunk(numStreams: number): number {
    const alone = this.#nearest(numStreams);
    if (alone === null || this.#stepsSincePlain >= REFRESH_STEPS) return 0;
    const { small, burst } = this.#tokenMs;
    this.#kind = "small";
    if (small === undefined) return CHUNK_LEAST;
    const fitting = (SHARE * alone) / small;
    const fittingMost = (SHARE * alone) / Math.min(small, burst ?? small);
    const isFast = BURST_EVERY * alone <= BETWEEN_BURSTS_MS_MAX && fittingMost < CHUNK_FULL;
    const inBursts = fitting < CHUNK_LEAST || isFast;
    return inBursts ? this.#burst(alone, small) : roundDown(fitting);
  }

  #burst(alone: number, smallMs: number): number {
    if (++this.#stepsSinceBurst < BURST_EVERY) return 0;
    this.#stepsSinceBurst = 0;
    if (++this.#burstsSinceTrial > BURSTS_TO_TRIAL) {
      this.#burstsSinceTrial = 0;
      this.#tokenMs.small = undefined;
      return CHUNK_LEAST;
    }
    this.#kind = "burst";
    const budget = Math.min(BURST_MS_MAX, BURST_SHARE * BURST_EVERY * alone);
    return roundDown(Math.max(1, budget / (this.#tokenMs.burst ?? smallMs)));
  }

  /** A step over streams and prompts took so long. */
  note(numStreams: number, promptTokens: number, milliseconds: number): void {
    if (promptTokens === 0) {
      this.#stepsSincePlain = 0;
      this.#streamsMs.set(numStreams, moved(this.#streamsMs.get(numStreams), milliseconds));
      return;
    }
    this.#stepsSincePlain++;
    const alone = numStreams === 0 ? 0 : this.#nearest(numStreams);
    if (alone === null) return;
    // Noise may make a step shorter than one without prompts: not free all the same.
    const added = Math.max(milliseconds - alone, milliseconds / 16) / promptTokens;
    // Without streams a step takes whole chunks, whose tokens cost what those of bursts do.
    const kind = numStreams === 0 ? "burst" : this.#kind;
    this.#tokenMs[kind] = moved(this.#tokenMs[kind], added);
  }

  /** Of about as many streams; null if nothing near was measured. */
  #nearest(numStreams: number): number | null {
    const slack = floorDiv(numStreams, 3);
    for (let distance = 0; distance <= slack; distance++) {
      const milliseconds =
        this.#streamsMs.get(numStreams - distance) ?? this.#streamsMs.get(numStreams + distance);
      if (milliseconds !== undefined) return milliseconds;
    }
    return null;
  }
}

function moved(known: number | undefined, measured: number): number {
  if (known === undefined) return measured;
  return measured > known ? Math.min(known * MOVE, measured) : Math.max(known / MOVE, measured);
}

/** The next lower of 1, 2, 3, 4, 6, 8, 12, 16, 24, 32 … */
function roundDown(count: number): number {
  const power = 2 ** Math.floor(Math.log2(count));
  return power > 1 && count >= 1.5 * power ? 1.5 * power : power;
}
