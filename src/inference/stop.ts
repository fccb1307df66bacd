/**
 * @file Stop strings: the text before the first one is given out, the string itself and what
 * follows never.
 *
 * A text that could become a stop string is held back until it is decided. Of several strings the
 * one that is complete first ends the text (of those that end together the longest), so the result
 * does not depend on how the text is cut into pieces: a stream gives the same text as the whole.
 * Refuses empty and malformed strings.
 */
import { OperationalError } from "../base/errors.ts";

const STOP_STRINGS_MAX = 64;
const STOP_LENGTH_MAX = 1024;

export interface ScannedText {
  /** What can be given out now. */
  readonly text: string;
  /** The stop string that was found; nothing is to be pushed after it. */
  readonly stop: string | null;
}

export class StopScanner {
  readonly #stops: readonly string[];
  #held = "";

  constructor(stops: readonly string[]) {
    if (stops.length > STOP_STRINGS_MAX) refuse(`${stops.length} stop strings; at most 64`);
    for (const stop of stops) {
      if (stop === "") refuse("a stop string is empty; leave it out");
      if (!stop.isWellFormed()) refuse("a stop string is not well-formed Unicode");
      if (stop.length > STOP_LENGTH_MAX) {
        refuse(`a stop string has ${stop.length} characters; at most ${STOP_LENGTH_MAX}`);
      }
    }
    this.#stops = stops;
  }

  push(text: string): ScannedText {
    const pending = this.#held + text;
    const found = findFirst(pending, this.#stops);
    if (found !== null) {
      this.#held = "";
      return { text: pending.slice(0, found.start), stop: found.stop };
    }
    const numHeld = countHeldBack(pending, this.#stops);
    this.#held = pending.slice(pending.length - numHeld);
    return { text: pending.slice(0, pending.length - numHeld), stop: null };
  }

  /** The text held back, when no more can come. */
  end(): string {
    const held = this.#held;
    this.#held = "";
    return held;
  }
}

function refuse(problem: string): never {
  throw new OperationalError("inference.stop", problem);
}

function findFirst(
  text: string,
  stops: readonly string[],
): { readonly start: number; readonly stop: string } | null {
  let first: { start: number; end: number; stop: string } | null = null;
  for (const stop of stops) {
    const start = text.indexOf(stop);
    if (start < 0) continue;
    const end = start + stop.length;
    if (first === null || end < first.end || (end === first.end && start < first.start)) {
      first = { start, end, stop };
    }
  }
  return first;
}

/** Length of the longest end of `text` that a stop string begins with. */
function countHeldBack(text: string, stops: readonly string[]): number {
  let most = 0;
  for (const stop of stops) {
    for (let length = Math.min(stop.length - 1, text.length); length > most; length--) {
      if (text.endsWith(stop.slice(0, length))) most = length;
    }
  }
  return most;
}
