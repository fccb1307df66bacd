/**
 * @file Learning a byte-level BPE vocabulary: count the pieces, then merge the most frequent pair,
 * again and again.
 *
 * A merge makes one new token; the pair counted most often over all pieces is merged next. Equal
 * counts go to the pair with the lower left id, then the lower right id (ids: added tokens, bytes
 * in rising order, merges in the order they were made), so the result depends on the counts of the
 * pieces alone, not on the order of the texts. Pair counts are kept up to date by the words that
 * hold the pair; a heap gives the next pair, and an entry whose count has fallen is put back with
 * its present count when it comes to the top. Counts of old pairs only fall: a pair that gains
 * occurrences contains the token just made.
 *
 * Pieces longer than `PIECE_BYTES_MAX` bytes are learned from in parts of that length, which bounds
 * the work that one merge can cause; encoding has no such bound. Source: Sennrich et al. 2016, on
 * bytes as in GPT-2.
 */
import { assert, OperationalError } from "../base/errors.ts";
import { PairTable } from "./pair-table.ts";
import { PieceScanner } from "./pre-tokenizer.ts";
import { utf8LengthMax, writeUtf8 } from "./utf8.ts";

/** How a vocabulary is learned. */
export interface BpeTrainOptions {
  /** Tokens wanted in all, with added tokens and the 256 bytes. */
  readonly vocabSize: number;
  readonly numAddedTokens: number;
  /** A pair seen less often than this is not merged; 2 unless said otherwise. */
  readonly minFrequency?: number;
  /**
   * Texts are read until this many bytes (UTF-8) have been; the text that crosses the mark is cut
   * there.
   */
  readonly bytesMax?: number;
  readonly onProgress?: (progress: BpeTrainProgress) => void;
}

export interface BpeTrainProgress {
  readonly stage: "count" | "merge";
  readonly bytesRead: number;
  /** Tokens there are so far, of `vocabSize` wanted. */
  readonly numTokens: number;
  readonly vocabSize: number;
}

/**
 * What was learned: merge `i` joins `left[i]` and `right[i]` into token `numAddedTokens + 256 + i`.
 */
export interface BpeMerges {
  readonly left: Int32Array;
  readonly right: Int32Array;
  readonly bytesRead: number;
}

const PIECE_BYTES_MAX = 128;
const PROGRESS_MERGES = 256;
const PROGRESS_BYTES = 2 ** 20;

/** Learns merges from texts. Fewer than asked for when no pair is frequent enough. */
export function trainBpe(texts: Iterable<string>, options: BpeTrainOptions): BpeMerges {
  const { vocabSize, numAddedTokens, minFrequency = 2, bytesMax = Infinity } = options;
  assert(minFrequency >= 1, `minFrequency (${minFrequency}) must be >= 1`);
  const numMerges = vocabSize - numAddedTokens - 256;
  if (numMerges < 0) {
    throw new OperationalError(
      "tokenizer.vocabSize",
      `vocabSize (${vocabSize}) must hold ${numAddedTokens} added tokens and 256 bytes; ` +
        `use ${numAddedTokens + 256} or more`,
    );
  }
  const report = (stage: "count" | "merge", bytesRead: number, numMade: number): void =>
    options.onProgress?.({
      stage,
      bytesRead,
      numTokens: numAddedTokens + 256 + numMade,
      vocabSize,
    });
  const { counts, bytesRead } = countPieces(texts, bytesMax, (bytes) => report("count", bytes, 0));
  const learner = new MergeLearner(counts, numAddedTokens, minFrequency);
  const left: number[] = [];
  const right: number[] = [];
  while (left.length < numMerges) {
    const pair = learner.mergeNext();
    if (pair === undefined) break;
    left.push(pair.left);
    right.push(pair.right);
    if (left.length % PROGRESS_MERGES === 0) report("merge", bytesRead, left.length);
  }
  report("merge", bytesRead, left.length);
  return { left: Int32Array.from(left), right: Int32Array.from(right), bytesRead };
}

function countPieces(
  texts: Iterable<string>,
  bytesMax: number,
  onBytes: (bytesRead: number) => void,
): { counts: Map<string, number>; bytesRead: number } {
  const counts = new Map<string, number>();
  const scanner = new PieceScanner();
  let bytesRead = 0;
  let bytesNext = PROGRESS_BYTES;
  for (const text of texts) {
    // A UTF-16 unit takes at least one byte, so this cut loses nothing and keeps a huge text from
    // being walked.
    const head = text.slice(0, bytesMax - bytesRead).toWellFormed();
    const wanted = cutToBytes(head, bytesMax - bytesRead);
    bytesRead += wanted.bytes;
    scanner.reset(wanted.text);
    while (scanner.next()) {
      const piece = wanted.text.slice(scanner.start, scanner.end);
      counts.set(piece, (counts.get(piece) ?? 0) + 1);
    }
    if (bytesRead >= bytesNext) {
      onBytes(bytesRead);
      bytesNext = bytesRead + PROGRESS_BYTES;
    }
    if (wanted.text.length < text.length || bytesRead >= bytesMax) break;
  }
  onBytes(bytesRead);
  return { counts, bytesRead };
}

/** The longest prefix of `text` with at most `bytesMax` bytes, and its bytes. */
function cutToBytes(text: string, bytesMax: number): { text: string; bytes: number } {
  let bytes = 0;
  for (let i = 0; i < text.length; ) {
    const codePoint = text.codePointAt(i)!;
    const width = codePoint < 0x80 ? 1 : codePoint < 0x800 ? 2 : codePoint < 0x10000 ? 3 : 4;
    if (bytes + width > bytesMax) return { text: text.slice(0, i), bytes };
    bytes += width;
    i += codePoint > 0xffff ? 2 : 1;
  }
  return { text, bytes };
}

interface PairEntry {
  readonly left: number;
  readonly right: number;
  /** Occurrences over all words now. */
  count: number;
  /** The count it has in the heap. */
  countInHeap: number;
  /** Words that held the pair at some time; a word may stand twice. */
  readonly words: number[];
}

/** The words, the pairs in them and what is merged next. */
class MergeLearner {
  readonly #minFrequency: number;
  readonly #symbols: Int32Array;
  readonly #wordStart: Int32Array;
  readonly #wordLength: Int32Array;
  readonly #wordCount: Float64Array;
  /** The last merge that changed a word, so that a word listed twice is changed once. */
  readonly #wordMerge: Int32Array;
  readonly #pairOf = new PairTable(2 ** 16);
  readonly #pairs: PairEntry[] = [];
  readonly #heap: PairEntry[] = [];
  readonly #firstMergedToken: number;
  #numMerges = 0;

  constructor(counts: ReadonlyMap<string, number>, numAddedTokens: number, minFrequency: number) {
    this.#minFrequency = minFrequency;
    this.#firstMergedToken = numAddedTokens + 256;
    const words = splitIntoWords(counts, numAddedTokens);
    this.#symbols = words.symbols;
    this.#wordStart = words.start;
    this.#wordLength = words.length;
    this.#wordCount = words.count;
    this.#wordMerge = new Int32Array(words.start.length).fill(-1);
    for (let word = 0; word < words.start.length; word++) this.#countPairs(word);
    for (const pair of this.#pairs) this.#push(pair);
  }

  /** Merges the most frequent pair and returns it; undefined when none is frequent enough. */
  mergeNext(): { left: number; right: number } | undefined {
    for (;;) {
      const pair = this.#pop();
      if (pair === undefined) return undefined;
      if (pair.count < this.#minFrequency) continue;
      if (pair.count !== pair.countInHeap) {
        this.#push(pair);
        continue;
      }
      this.#merge(pair);
      return pair;
    }
  }

  #merge(pair: PairEntry): void {
    const mergeIndex = this.#numMerges++;
    const firstNewPair = this.#pairs.length;
    for (const word of pair.words) {
      if (this.#wordMerge[word] === mergeIndex) continue;
      this.#wordMerge[word] = mergeIndex;
      this.#mergeInWord(word, pair, this.#firstMergedToken + mergeIndex);
    }
    pair.words.length = 0;
    for (const made of this.#pairs.slice(firstNewPair)) this.#push(made);
  }

  #mergeInWord(word: number, pair: PairEntry, token: number): void {
    const symbols = this.#symbols;
    const count = this.#wordCount[word]!;
    const start = this.#wordStart[word]!;
    const end = start + this.#wordLength[word]!;
    let to = start;
    for (let from = start; from < end; ) {
      const isMatch =
        from + 1 < end && symbols[from] === pair.left && symbols[from + 1] === pair.right;
      if (!isMatch) {
        symbols[to++] = symbols[from++]!;
        continue;
      }
      // The pairs that end and begin here are replaced one by one: left neighbour (already
      // rewritten), then right.
      pair.count -= count;
      if (to > start) {
        this.#addToPair(symbols[to - 1]!, pair.left, -count, word);
        this.#addToPair(symbols[to - 1]!, token, count, word);
      }
      if (from + 2 < end) {
        this.#addToPair(pair.right, symbols[from + 2]!, -count, word);
        this.#addToPair(token, symbols[from + 2]!, count, word);
      }
      symbols[to++] = token;
      from += 2;
    }
    this.#wordLength[word] = to - start;
  }

  #countPairs(word: number): void {
    const start = this.#wordStart[word]!;
    const last = start + this.#wordLength[word]! - 1;
    for (let i = start; i < last; i++) {
      this.#addToPair(this.#symbols[i]!, this.#symbols[i + 1]!, this.#wordCount[word]!, word);
    }
  }

  #addToPair(left: number, right: number, count: number, word: number): void {
    const index = this.#pairOf.get(left, right);
    const pair = index < 0 ? this.#newPair(left, right) : this.#pairs[index]!;
    pair.count += count;
    if (count > 0 && pair.words.at(-1) !== word) pair.words.push(word);
  }

  #newPair(left: number, right: number): PairEntry {
    const pair = { left, right, count: 0, countInHeap: 0, words: [] };
    this.#pairOf.add(left, right, this.#pairs.length);
    this.#pairs.push(pair);
    return pair;
  }

  #push(pair: PairEntry): void {
    if (pair.count < this.#minFrequency) return;
    pair.countInHeap = pair.count;
    const heap = this.#heap;
    let child = heap.length;
    heap.push(pair);
    while (child > 0) {
      const parent = (child - 1) >> 1;
      if (!isBefore(pair, heap[parent]!)) break;
      heap[child] = heap[parent]!;
      child = parent;
    }
    heap[child] = pair;
  }

  #pop(): PairEntry | undefined {
    const heap = this.#heap;
    const top = heap[0];
    const last = heap.pop();
    if (top === undefined || last === undefined || heap.length === 0) return top;
    let hole = 0;
    for (;;) {
      let child = hole * 2 + 1;
      if (child >= heap.length) break;
      if (child + 1 < heap.length && isBefore(heap[child + 1]!, heap[child]!)) child++;
      if (!isBefore(heap[child]!, last)) break;
      heap[hole] = heap[child]!;
      hole = child;
    }
    heap[hole] = last;
    return top;
  }
}

function isBefore(a: PairEntry, b: PairEntry): boolean {
  if (a.countInHeap !== b.countInHeap) return a.countInHeap > b.countInHeap;
  return a.left !== b.left ? a.left < b.left : a.right < b.right;
}

interface Words {
  readonly symbols: Int32Array;
  readonly start: Int32Array;
  readonly length: Int32Array;
  readonly count: Float64Array;
}

/** The pieces as symbols: bytes, moved up by the added tokens; long pieces in parts. */
function splitIntoWords(counts: ReadonlyMap<string, number>, numAddedTokens: number): Words {
  let bytesTotal = 0;
  let bytes = new Uint8Array(1024);
  const start: number[] = [];
  const length: number[] = [];
  const count: number[] = [];
  let symbols = new Int32Array(2 ** 16);
  for (const [piece, occurrences] of counts) {
    if (bytes.length < utf8LengthMax(piece.length)) bytes = new Uint8Array(piece.length * 4);
    const pieceBytes = writeUtf8(piece, 0, piece.length, bytes);
    if (bytesTotal + pieceBytes > symbols.length) {
      const grown = new Int32Array((bytesTotal + pieceBytes) * 2);
      grown.set(symbols);
      symbols = grown;
    }
    for (let from = 0; from < pieceBytes; from += PIECE_BYTES_MAX) {
      start.push(bytesTotal + from);
      length.push(Math.min(PIECE_BYTES_MAX, pieceBytes - from));
      count.push(occurrences);
    }
    for (let i = 0; i < pieceBytes; i++) symbols[bytesTotal + i] = bytes[i]! + numAddedTokens;
    bytesTotal += pieceBytes;
  }
  return {
    symbols: symbols.subarray(0, bytesTotal),
    start: Int32Array.from(start),
    length: Int32Array.from(length),
    count: Float64Array.from(count),
  };
}
