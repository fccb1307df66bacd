/**
 * @file Validation batches: every byte of the held-out documents once, for bits per byte.
 *
 * The documents stand one after another, each framed `<bos> text <eos>`, and are read in windows
 * that do not overlap: window w has the inputs w·seqLength to (w+1)·seqLength − 1 of that stream
 * and as targets the tokens one further. A window begins without context but its first token; a
 * document begins with `<bos>`. Only tokens of text count:
 *
 *     bits per byte = Σ −ln p(target) over targets with bytes ÷ (ln 2 · Σ bytes of those targets)
 *
 * so the bytes add up to the documents' bytes exactly and the tokenizer does not matter. Markers
 * have no bytes and are not counted; the last window is filled up with `<eos>`, which is not
 * counted either. Order and windows never change, so values compare across steps and runs.
 */
import { assert } from "../../base/errors.ts";
import { ceilDiv } from "../../base/integers.ts";
import type { Tokenizer } from "../../tokenizer/tokenizer.ts";
import type { Batch } from "./batches.ts";
import type { TokenSource } from "./token-source.ts";

export interface ValidationOptions {
  readonly seqLength: number;
  readonly lookahead: number;
  /** Sequences of a batch; the last one may have fewer. */
  readonly numSequences: number;
  /** Only this many windows, evenly spread over the stream; all of them unless said otherwise. */
  readonly windowsMax?: number;
}

export interface ValidationBatch extends Batch {
  /**
   * [numSequences, seqLength]: UTF-8 bytes of the target at each position, 0 for one that does not
   * count.
   */
  readonly targetBytes: Int32Array<ArrayBuffer>;
  /** Their sum. */
  readonly bytes: number;
}

/** The windows in order; target of position j of a sequence is its token j + 1. */
export function* validationBatches(
  source: TokenSource,
  tokenizer: Tokenizer,
  options: ValidationOptions,
): Generator<ValidationBatch> {
  const { seqLength, lookahead, numSequences, windowsMax = Infinity } = options;
  assert(seqLength >= 1, `seqLength (${seqLength}) must be >= 1`);
  assert(lookahead >= 1, `lookahead (${lookahead}) must be >= 1`);
  assert(numSequences >= 1, `numSequences (${numSequences}) must be >= 1`);
  const stream = new FramedDocuments(source, tokenizer);
  const numWindows = ceilDiv(Math.max(0, stream.numTokens - 1), seqLength);
  const numChosen = Math.min(numWindows, windowsMax);
  const width = seqLength + lookahead;
  for (let first = 0; first < numChosen; first += numSequences) {
    const numHere = Math.min(numSequences, numChosen - first);
    const tokens = new Int32Array(numHere * width);
    const targetBytes = new Int32Array(numHere * seqLength);
    for (let sequence = 0; sequence < numHere; sequence++) {
      const window = Math.floor(((first + sequence) * numWindows) / numChosen);
      const out = tokens.subarray(sequence * width, (sequence + 1) * width);
      stream.read(window * seqLength, out);
      for (let j = 0; j < seqLength; j++) {
        targetBytes[sequence * seqLength + j] = tokenizer.countBytes(out[j + 1]!);
      }
    }
    const bytes = targetBytes.reduce((sum, count) => sum + count, 0);
    yield { tokens, numSequences: numHere, width, targetBytes, bytes };
  }
}

/** The documents in their frames as one stream; `<eos>` without end behind it. */
class FramedDocuments {
  readonly #source: TokenSource;
  readonly #tokenizer: Tokenizer;
  /** Where each document's frame begins, and where the last one ends. */
  readonly #starts: Float64Array;

  constructor(source: TokenSource, tokenizer: Tokenizer) {
    this.#source = source;
    this.#tokenizer = tokenizer;
    this.#starts = new Float64Array(source.numDocuments + 1);
    for (let d = 0; d < source.numDocuments; d++) {
      this.#starts[d + 1] = this.#starts[d]! + source.documentTokens(d) + 2;
    }
  }

  get numTokens(): number {
    return this.#starts.at(-1)!;
  }

  read(position: number, out: Int32Array): void {
    out.fill(this.#tokenizer.eosId);
    let document = this.#documentAt(position);
    for (let filled = 0; filled < out.length && document < this.#source.numDocuments; document++) {
      const start = this.#starts[document]!;
      const numTokens = this.#source.documentTokens(document);
      // What of the frame is wanted: 0 is <bos>, 1 to numTokens the text, then <eos>, which is
      // there.
      const from = position + filled - start;
      const to = Math.min(numTokens + 2, from + out.length - filled);
      if (from === 0) out[filled] = this.#tokenizer.bosId;
      const [textFrom, textTo] = [Math.max(from, 1), Math.min(to, numTokens + 1)];
      if (textTo > textFrom) {
        const text = this.#source.read(document, textFrom - 1, textTo - textFrom);
        out.set(text, filled + textFrom - from);
      }
      filled += to - from;
    }
  }

  /** The last document whose frame begins at or before the position. */
  #documentAt(position: number): number {
    let [low, high] = [0, this.#source.numDocuments];
    while (high - low > 1) {
      const middle = (low + high) >> 1;
      if (this.#starts[middle]! <= position) low = middle;
      else high = middle;
    }
    return low;
  }
}
