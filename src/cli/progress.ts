/**
 * @file One live line on a terminal: a bar, the verb's own words, the time left.
 *
 * Drawn at most ten times a second; off a terminal it prints nothing at all, because a log wants
 * the metrics file, not a thousand redrawn lines. The time left assumes that what remains goes as
 * fast as what is done.
 */
import { cutTo, durationText } from "./text.ts";

/** The part of a stream that the command line writes to; `process.stderr` is one. */
export interface TextStream {
  write(text: string): unknown;
  readonly isTTY?: boolean | undefined;
  readonly columns?: number | undefined;
}

export interface ProgressState {
  /** In any unit, the same for both: steps, tokens, seconds. */
  readonly done: number;
  readonly total: number;
  readonly text: string;
}

const REDRAW_EVERY_MS = 100;
const BAR_WIDTH = 20;
/** Narrower terminals have no room for a bar beside the text. */
const LEAST_COLUMNS_FOR_BAR = 70;

export class ProgressLine {
  readonly #stream: TextStream;
  readonly #nowMs: () => number;
  #startedMs: number | undefined;
  #startedAt = 0;
  #drawnMs = -Infinity;
  #drawn = false;

  constructor(stream: TextStream, nowMs: () => number = () => performance.now()) {
    this.#stream = stream;
    this.#nowMs = nowMs;
  }

  /** Shows the state, unless the line was drawn less than a tenth of a second ago. */
  update(state: ProgressState): void {
    if (!this.#stream.isTTY) return;
    const nowMs = this.#nowMs();
    if (this.#startedMs === undefined) {
      this.#startedMs = nowMs;
      this.#startedAt = state.done;
    }
    if (nowMs - this.#drawnMs < REDRAW_EVERY_MS) return;
    this.#drawnMs = nowMs;
    this.#drawn = true;
    const secondsSince = (nowMs - this.#startedMs) / 1000;
    const left = secondsLeft(state, state.done - this.#startedAt, secondsSince);
    this.#stream.write(`\r\x1b[2K${progressText(state, left, this.#stream.columns || 80)}`);
  }

  /** Wipes the line, so that another can be printed; the next update draws it again. */
  clear(): void {
    if (!this.#drawn) return;
    this.#drawn = false;
    this.#drawnMs = -Infinity;
    this.#stream.write("\r\x1b[2K");
  }
}

function secondsLeft(state: ProgressState, done: number, seconds: number): number | undefined {
  if (done <= 0 || seconds <= 0) return undefined;
  return (Math.max(0, state.total - state.done) * seconds) / done;
}

/**
 * The line itself, in fewer than `columns` characters: a full last column would wrap on some
 * terminals.
 */
export function progressText(
  state: ProgressState,
  left: number | undefined,
  columns: number,
): string {
  const share = state.total > 0 ? Math.min(1, Math.max(0, state.done / state.total)) : 0;
  const filled = Math.round(share * BAR_WIDTH);
  const bar = `${"█".repeat(filled)}${"░".repeat(BAR_WIDTH - filled)} `;
  const before = `${columns < LEAST_COLUMNS_FOR_BAR ? "" : bar}${Math.floor(share * 100)}%  `;
  const after = left === undefined ? "" : `  ${durationText(left)} left`;
  const room = columns - 1 - before.length - after.length;
  return cutTo(before + cutTo(state.text, Math.max(0, room)) + after, columns - 1);
}
