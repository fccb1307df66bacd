/**
 * @file The tokenizer: text to token ids and back, without loss for well-formed text.
 *
 * Text from users never yields added tokens: `encode("<｜end▁of▁sentence｜>")` spells the marker with
 * ordinary tokens, so a prompt cannot forge the end of a turn. Where a template has to
 * (`allowAddedTokens: true`), markers are found first, the longest at each place. No token is put
 * before or after the text; callers add `bosId` and `eosId`. A lone surrogate, which UTF-8 cannot
 * hold, is U+FFFD in every method here.
 */
import { assert, OperationalError } from "../base/errors.ts";
import { type MergeRules, PieceMerger } from "./bpe-merge.ts";
import type { BpeMerges } from "./bpe-train.ts";
import { nameOfBytes } from "./byte-alphabet.ts";
import { PairTable } from "./pair-table.ts";
import { PIECE_BYTES_MAX, PieceCache, pieceSlot } from "./piece-cache.ts";
import { PieceScanner } from "./pre-tokenizer.ts";
import {
  type AddedToken,
  SPECIAL_TOKENS,
  type SpecialTokenName,
  standardAddedTokens,
} from "./special-tokens.ts";
import { type DecodeOptions, StreamDecoder, type TokenTexts } from "./stream-decoder.ts";
import { TokenBuffer } from "./token-buffer.ts";
import { utf8LengthMax, writeUtf8 } from "./utf8.ts";

/**
 * Everything a tokenizer is made of; checked by its two makers, `learnedVocabulary` and
 * `readTokenizerJson`.
 */
export interface Vocabulary {
  /** By id; undefined for an added token and for an id nobody uses. */
  readonly tokenBytes: readonly (Uint8Array | undefined)[];
  /** Merge of rank i joins `left[i]` and `right[i]` into `merged[i]`. */
  readonly left: Int32Array;
  readonly right: Int32Array;
  readonly merged: Int32Array;
  readonly addedTokens: readonly AddedToken[];
  readonly bosId: number;
  readonly eosId: number;
  readonly padId: number;
  /** A piece that is a token whole takes that token without asking the merges. */
  readonly ignoreMerges: boolean;
}

export interface EncodeOptions {
  /**
   * Spellings of added tokens in the text become those tokens. Only for text from templates, never
   * from users.
   */
  readonly allowAddedTokens?: boolean;
}

const SCRATCH_BYTES_KEPT_MAX = 2 ** 20;
const NO_BYTES = new Uint8Array(0);

/** The vocabulary that learning made: added tokens, bytes, merges, in this order. */
export function learnedVocabulary(merges: Pick<BpeMerges, "left" | "right">): Vocabulary {
  const addedTokens = standardAddedTokens();
  const tokenBytes: (Uint8Array | undefined)[] = addedTokens.map(() => undefined);
  for (let byte = 0; byte < 256; byte++) tokenBytes.push(Uint8Array.of(byte));
  const merged = new Int32Array(merges.left.length);
  for (let rank = 0; rank < merged.length; rank++) {
    const left = tokenBytes[merges.left[rank]!];
    const right = tokenBytes[merges.right[rank]!];
    assert(left !== undefined, `merge ${rank}: its left side is not a token yet`);
    assert(right !== undefined, `merge ${rank}: its right side is not a token yet`);
    const bytes = new Uint8Array(left.length + right.length);
    bytes.set(left);
    bytes.set(right, left.length);
    merged[rank] = tokenBytes.push(bytes) - 1;
  }
  const [bosId, eosId] = [0, 1];
  return {
    ...merges,
    tokenBytes,
    merged,
    addedTokens,
    bosId,
    eosId,
    padId: eosId,
    ignoreMerges: false,
  };
}

export class Tokenizer implements TokenTexts {
  readonly vocabulary: Vocabulary;
  /** One more than the highest id. */
  readonly vocabSize: number;
  readonly bosId: number;
  readonly eosId: number;
  readonly padId: number;
  readonly #tokenOfByte = new Int32Array(256);
  readonly #idOfName = new Map<string, number>();
  readonly #addedOfId = new Map<number, AddedToken>();
  readonly #addedPattern: RegExp | undefined;
  readonly #rules: MergeRules;
  #merger: PieceMerger;
  readonly #scanner = new PieceScanner();
  readonly #cache = new PieceCache();
  #bytes = new Uint8Array(1024);
  #pairSteps = 0;

  constructor(vocabulary: Vocabulary) {
    this.vocabulary = vocabulary;
    this.vocabSize = vocabulary.tokenBytes.length;
    this.bosId = vocabulary.bosId;
    this.eosId = vocabulary.eosId;
    this.padId = vocabulary.padId;
    const { left, right, merged, addedTokens } = vocabulary;
    for (const added of addedTokens) this.#addedOfId.set(added.id, added);
    for (let id = 0; id < this.vocabSize; id++) {
      const bytes = vocabulary.tokenBytes[id];
      if (bytes?.length === 1) this.#tokenOfByte[bytes[0]!] = id;
      if (this.tokenName(id) !== "") this.#idOfName.set(this.tokenName(id), id);
    }
    const rankOf = new PairTable(left.length);
    for (let rank = 0; rank < left.length; rank++) rankOf.add(left[rank]!, right[rank]!, rank);
    this.#rules = { rankOf, tokenOfRank: merged };
    this.#merger = new PieceMerger(this.#rules);
    this.#addedPattern = addedTokensPattern(addedTokens);
  }

  /**
   * Characters and pairs looked at by `encode` since construction: the measure of the linear-time
   * tests.
   */
  get steps(): { characters: number; pairs: number } {
    return { characters: this.#scanner.steps, pairs: this.#pairSteps + this.#merger.steps };
  }

  encode(text: string, options: EncodeOptions = {}): Int32Array<ArrayBuffer> {
    const out = new TokenBuffer();
    this.encodeTo(out, text, options);
    return out.copy();
  }

  /** Appends the text's tokens to `out`. */
  encodeTo(out: TokenBuffer, text: string, options: EncodeOptions = {}): void {
    const wellFormed = text.toWellFormed();
    let position = 0;
    if (options.allowAddedTokens === true && this.#addedPattern !== undefined) {
      for (const match of wellFormed.matchAll(this.#addedPattern)) {
        this.#encodeText(out, wellFormed.slice(position, match.index));
        out.push(this.#idOfName.get(match[0])!);
        position = match.index + match[0].length;
      }
    }
    this.#encodeText(out, position === 0 ? wellFormed : wellFormed.slice(position));
  }

  decode(ids: Iterable<number>, options: DecodeOptions = {}): string {
    const stream = this.decoder(options);
    let text = "";
    for (const id of ids) text += stream.push(id);
    return text + stream.end();
  }

  /** A decoder for tokens that come one by one. */
  decoder(options: DecodeOptions = {}): StreamDecoder {
    return new StreamDecoder(this, options);
  }

  /** The bytes a token stands for in text: none for added tokens. */
  tokenBytes(id: number): Uint8Array {
    if (!Number.isInteger(id) || id < 0 || id >= this.vocabSize) {
      throw new OperationalError(
        "tokenizer.id",
        `token id ${id} is not in the vocabulary; ids go from 0 to ${this.vocabSize - 1}`,
      );
    }
    return this.vocabulary.tokenBytes[id] ?? NO_BYTES;
  }

  /**
   * How many bytes of text a token stands for: what bits per byte divides by. 0 for added tokens.
   */
  countBytes(id: number): number {
    return this.tokenBytes(id).length;
  }

  addedToken(id: number): AddedToken | undefined {
    return this.#addedOfId.get(id);
  }

  /** The token as tokenizer.json and GGUF name it; empty for an id nobody uses. */
  tokenName(id: number): string {
    return this.#addedOfId.get(id)?.content ?? nameOfBytes(this.tokenBytes(id));
  }

  /** The id of a name as in tokenizer.json. */
  idOfName(name: string): number | undefined {
    return this.#idOfName.get(name);
  }

  /** The id of one of DeepSeek's markers, where this vocabulary has it as an added token. */
  specialId(name: SpecialTokenName): number | undefined {
    const id = this.#idOfName.get(SPECIAL_TOKENS[name]);
    return id !== undefined && this.#addedOfId.has(id) ? id : undefined;
  }

  #encodeText(out: TokenBuffer, text: string): void {
    const scanner = this.#scanner;
    scanner.reset(text);
    while (scanner.next()) {
      const lengthMax = utf8LengthMax(scanner.end - scanner.start);
      if (lengthMax > this.#bytes.length) this.#bytes = new Uint8Array(lengthMax * 2);
      const length = writeUtf8(text, scanner.start, scanner.end, this.#bytes);
      if (length === 1) out.push(this.#tokenOfByte[this.#bytes[0]!]!);
      else if (length > PIECE_BYTES_MAX) out.append(this.#mergePiece(length));
      else this.#encodeShortPiece(out, length);
    }
    // A huge piece is rare; its scratch is not kept for the life of the tokenizer.
    if (this.#bytes.length > SCRATCH_BYTES_KEPT_MAX) {
      this.#bytes = new Uint8Array(1024);
      this.#pairSteps += this.#merger.steps;
      this.#merger = new PieceMerger(this.#rules);
    }
  }

  #encodeShortPiece(out: TokenBuffer, length: number): void {
    const slot = pieceSlot(this.#bytes, length);
    const kept = this.#cache.get(slot, this.#bytes, length);
    if (kept !== undefined) {
      out.append(kept);
      return;
    }
    const ids = this.#mergePiece(length);
    this.#cache.set(slot, this.#bytes, length, ids);
    out.append(ids);
  }

  /** The tokens of the piece in `#bytes`, a view of the merger's scratch. */
  #mergePiece(length: number): Int32Array {
    if (this.vocabulary.ignoreMerges) {
      const whole = this.#idOfName.get(nameOfBytes(this.#bytes.subarray(0, length)));
      if (whole !== undefined && !this.#addedOfId.has(whole)) return Int32Array.of(whole);
    }
    const symbols = this.#merger.symbols(length);
    for (let i = 0; i < length; i++) symbols[i] = this.#tokenOfByte[this.#bytes[i]!]!;
    return symbols.subarray(0, this.#merger.merge(length));
  }
}

/** Any of the spellings, the longest first. */
function addedTokensPattern(addedTokens: readonly AddedToken[]): RegExp | undefined {
  if (addedTokens.length === 0) return undefined;
  const spellings = addedTokens.map((added) => added.content);
  spellings.sort((a, b) => b.length - a.length);
  return new RegExp(
    spellings.map((s) => s.replace(/[.*+?^${}()|[\]\\/]/g, "\\$&")).join("|"),
    "gu",
  );
}
