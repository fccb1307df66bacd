/**
 * @file How many tokens of prompts a step takes beside streams, by the time that steps took: it
 * decides how fast a prompt is read, never which tokens come.
 *
 *     a step beside streams should take (1 + SHARE) times what it takes the streams alone
 *
 * What the streams alone take is measured in steps that read no prompt; while prompts are read, one
 * step in 64 is given to that. What a prompt token adds follows the last few steps: it grows with
 * the prompt's length, and falls with the chunk's, whose first tokens cost most. Chunks have few
 * sizes, so that passes of the same shape come again: the decoder replays those.
 */
import { floorDiv } from "../../base/integers.ts";

/** Leaves room below twice: for noise, and for caches that a prompt's latents have swept. */
const SHARE = 0.5;
const REFRESH_STEPS = 64;
/** How far what is known moves towards what a step took: a median, which outliers do not move. */
const MOVE = 1.15;
/**
 * Even where streams are so fast that any prompt slows them, some is read: it has to end sometime.
 * A token, or up to so many where they add hardly more than half of them: at a long context what
 * costs is reading the latents, which a few tokens do together.
 */
const TOGETHER_MOST = 4;
const HARDLY_MORE = 1.25;

export class PrefillPace {
  /** Milliseconds of a step without prompts, by the number of streams in it. */
  readonly #streamsMs = new Map<number, number>();
  /** Milliseconds that a prompt token adds. */
  #tokenMs: number | undefined;
  /** Milliseconds that a step's prompt tokens added, by their number, of the smallest numbers. */
  readonly #addedMs = new Map<number, number>();
  #stepsSincePlain = 0;

  /** Prompt tokens for the next step beside `numStreams` >= 1 streams; 0: measure these alone. */
  chunk(numStreams: number): number {
    const nearest = this.#nearest(numStreams);
    if (nearest === null || this.#stepsSincePlain >= REFRESH_STEPS) return 0;
    if (this.#tokenMs === undefined) return 1;
    return this.#together(roundDown(Math.max(1, (SHARE * nearest) / this.#tokenMs)));
  }

  /** `count`, or more that were seen to add hardly more; what was never seen is tried. */
  #together(count: number): number {
    const added = this.#addedMs.get(count);
    if (added === undefined || 2 * count > TOGETHER_MOST) return count;
    const ofTwice = this.#addedMs.get(2 * count);
    if (ofTwice === undefined) return 2 * count;
    return ofTwice <= HARDLY_MORE * added ? this.#together(2 * count) : count;
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
    const added = Math.max(milliseconds - alone, milliseconds / 16);
    this.#tokenMs = moved(this.#tokenMs, added / promptTokens);
    if (promptTokens > TOGETHER_MOST) return;
    this.#addedMs.set(promptTokens, moved(this.#addedMs.get(promptTokens), added));
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
