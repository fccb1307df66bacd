/**
 * @file Training batches: documents packed into sequences, fill in the middle, exact resumption.
 *
 * The stream of tokens: epoch after epoch, every span of the corpus (spans.ts) in an order shuffled
 * anew, framed as
 *
 *     <bos> span                                       and <eos> where the document ends
 *     <bos> <fim_begin> prefix <fim_hole> suffix <fim_end> middle <eos>        with `fimRate`
 *
 * A begin of sentence opens every span because it opens every prompt: DeepSeek's tokenizers put it
 * first, and a prompt cut from a long file begins in its midst as a span does. A span chosen for
 * the second form is cut into pieces of at most `fimTokensMax` tokens, so that prefix, suffix and
 * middle meet in one sequence; the gap's ends are drawn from the characters of the piece (one that
 * begins or ends inside a character stays as it is). With both limits infinite this is the report's
 * recipe.
 *
 * Sequence i is tokens i·seqLength to (i+1)·seqLength + lookahead of the stream: a token is a
 * target once, and sequences share only the lookahead (1 for the next token, one more for each MTP
 * module). Attention crosses documents, as in the report. What is random depends on the seed, the
 * epoch and the span alone, so three numbers are the whole state, and batches of any size may
 * follow one another.
 */
import { assert, OperationalError } from "../../base/errors.ts";
import { isIntegerIn } from "../../base/integers.ts";
import { Random } from "../../base/random.ts";
import { fimDocument, supportsFim } from "../../tokenizer/fim.ts";
import { TokenBuffer } from "../../tokenizer/token-buffer.ts";
import type { Tokenizer } from "../../tokenizer/tokenizer.ts";
import { CutRules, cutIntoSpans, type Spans } from "./spans.ts";
import type { TokenSource } from "./token-source.ts";

export interface BatchOptions {
  readonly seqLength: number;
  /** Tokens after the sequence that targets need: 1, and 1 for each MTP module. */
  readonly lookahead: number;
  /** A longer document is cut into spans of at most this; Infinity for whole documents. */
  readonly spanTokensMax: number;
  /** The share of spans to train on filling in the middle; 0.1 in the report, 0 for none. */
  readonly fimRate: number;
  /**
   * A longer span is cut into pieces of at most this before gaps are made; Infinity for whole
   * spans.
   */
  readonly fimTokensMax: number;
  readonly seed: number;
}

/** Sequences of `width` = seqLength + lookahead tokens, one after another. */
export interface Batch {
  readonly tokens: Int32Array<ArrayBuffer>;
  readonly numSequences: number;
  readonly width: number;
}

/** Where the next sequence begins; plain JSON, for the checkpoint. */
export interface LoaderState {
  readonly epoch: number;
  /** Place in the epoch's order of spans. */
  readonly place: number;
  /** Tokens of the framed span at that place that were used. */
  readonly offset: number;
  /** Spans of the corpus: tells a state that belongs to another corpus or other options. */
  readonly numSpans: number;
}

interface Cursor {
  epoch: number;
  place: number;
  offset: number;
}

/** Framed spans kept, so that the lookahead is not made twice. */
const FRAMES_KEPT = 4;

export class BatchLoader {
  readonly #source: TokenSource;
  readonly #tokenizer: Tokenizer;
  readonly #options: BatchOptions;
  readonly #rules: CutRules;
  readonly #spans: Spans;
  readonly #frames = new Map<string, Int32Array>();
  #order: { readonly epoch: number; readonly spans: Uint32Array } | undefined;
  #cursor: Cursor = { epoch: 0, place: 0, offset: 0 };

  constructor(source: TokenSource, tokenizer: Tokenizer, options: BatchOptions) {
    const { seqLength, lookahead, fimRate } = options;
    assert(seqLength >= 1, `seqLength (${seqLength}) must be >= 1`);
    assert(lookahead >= 1, `lookahead (${lookahead}) must be >= 1`);
    assert(fimRate >= 0 && fimRate <= 1, `fimRate (${fimRate}) must be in [0, 1]`);
    if (fimRate > 0 && !supportsFim(tokenizer)) {
      const message = `fimRate is ${fimRate}, but the vocabulary has no fim markers; set it to 0`;
      throw new OperationalError("config.fimRate", message);
    }
    this.#source = source;
    this.#tokenizer = tokenizer;
    this.#options = options;
    this.#rules = new CutRules(tokenizer);
    this.#spans = cutIntoSpans(source, this.#rules, options.spanTokensMax);
    if (this.numSpans === 0) {
      const message = `the training side has ${source.numDocuments} documents without a token`;
      throw new OperationalError("data.empty", `${message}; give more text or hold out less`);
    }
  }

  get numSpans(): number {
    return this.#spans.document.length;
  }

  get state(): LoaderState {
    return { ...this.#cursor, numSpans: this.numSpans };
  }

  /** Continues where `state` was taken: by a loader of the same corpus, tokenizer and options. */
  restore(state: LoaderState): void {
    const { epoch, place, offset, numSpans } = state;
    const isValid =
      numSpans === this.numSpans &&
      isIntegerIn(epoch, 0, Number.MAX_SAFE_INTEGER) &&
      isIntegerIn(place, 0, numSpans - 1) &&
      isIntegerIn(offset, 0, this.#frame(epoch, place).length);
    if (!isValid) {
      throw new OperationalError(
        "data.loaderState",
        `the loader's state ${JSON.stringify(state)} does not fit a corpus of ${this.numSpans} ` +
          "spans; resume with the data and options the run began with",
      );
    }
    this.#cursor = { epoch, place, offset };
  }

  /** The next `numSequences` sequences of the stream. */
  next(numSequences: number): Batch {
    const { seqLength, lookahead } = this.#options;
    const width = seqLength + lookahead;
    const tokens = new Int32Array(numSequences * width);
    for (let sequence = 0; sequence < numSequences; sequence++) {
      const first = sequence * width;
      this.#fill(tokens.subarray(first, first + seqLength), this.#cursor);
      this.#fill(tokens.subarray(first + seqLength, first + width), { ...this.#cursor });
    }
    return { tokens, numSequences, width };
  }

  /** Fills `out` from the cursor on and moves the cursor. */
  #fill(out: Int32Array, cursor: Cursor): void {
    let filled = 0;
    while (filled < out.length) {
      const frame = this.#frame(cursor.epoch, cursor.place);
      const part = frame.subarray(cursor.offset, cursor.offset + out.length - filled);
      out.set(part, filled);
      filled += part.length;
      cursor.offset += part.length;
      if (cursor.offset < frame.length) continue;
      cursor.offset = 0;
      cursor.place++;
      if (cursor.place < this.numSpans) continue;
      cursor.place = 0;
      cursor.epoch++;
    }
  }

  #frame(epoch: number, place: number): Int32Array {
    const key = `${epoch} ${place}`;
    const kept = this.#frames.get(key);
    if (kept !== undefined) return kept;
    const frame = this.#makeFrame(epoch, this.#spanAt(epoch, place));
    const oldest = this.#frames.keys().next();
    if (this.#frames.size === FRAMES_KEPT && !oldest.done) this.#frames.delete(oldest.value);
    this.#frames.set(key, frame);
    return frame;
  }

  #spanAt(epoch: number, place: number): number {
    if (this.#order?.epoch !== epoch) {
      const spans = Uint32Array.from({ length: this.numSpans }, (_, span) => span);
      new Random(this.#options.seed, `shuffle ${epoch}`).shuffle(spans);
      this.#order = { epoch, spans };
    }
    return this.#order.spans[place]!;
  }

  #makeFrame(epoch: number, span: number): Int32Array {
    const document = this.#spans.document[span]!;
    const start = this.#spans.start[span]!;
    const ids = this.#source.read(document, start, this.#spans.count[span]!);
    const random = new Random(this.#options.seed, `fim ${epoch} ${span}`);
    if (random.uniform() < this.#options.fimRate) return this.#fimFrame(ids, random);
    const isLast = start + ids.length === this.#source.documentTokens(document);
    const frame = new Int32Array(ids.length + (isLast ? 2 : 1));
    frame[0] = this.#tokenizer.bosId;
    frame.set(ids, 1);
    if (isLast) frame[frame.length - 1] = this.#tokenizer.eosId;
    return frame;
  }

  #fimFrame(ids: Int32Array, random: Random): Int32Array {
    const read = (from: number, count: number): Int32Array => ids.subarray(from, from + count);
    const frame = new TokenBuffer();
    let start = 0;
    for (const length of this.#rules.cut(ids.length, this.#options.fimTokensMax, read)) {
      const piece = ids.subarray(start, start + length);
      start += length;
      const text = textOf(piece, this.#tokenizer);
      if (text === undefined) {
        frame.push(this.#tokenizer.bosId);
        frame.append(piece);
        continue;
      }
      const ends = [characterStart(text, random), characterStart(text, random)];
      const [from, to] = ends.sort((a, b) => a - b) as [number, number];
      const parts = { prefix: text.slice(0, from), middle: text.slice(from, to) };
      frame.append(fimDocument(this.#tokenizer, { ...parts, suffix: text.slice(to) }));
    }
    return frame.copy();
  }
}

/** The text of tokens; undefined when they begin or end inside a character. */
function textOf(ids: Int32Array, tokenizer: Tokenizer): string | undefined {
  const parts = Array.from(ids, (id) => tokenizer.tokenBytes(id));
  const bytes = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
  let length = 0;
  for (const part of parts) {
    bytes.set(part, length);
    length += part.length;
  }
  try {
    return new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(bytes);
  } catch {
    return undefined;
  }
}

/** A place between two characters of the text, or at an end. */
function characterStart(text: string, random: Random): number {
  const position = random.below(text.length + 1);
  const code = text.charCodeAt(position);
  return code >= 0xdc00 && code < 0xe000 ? position + 1 : position;
}
