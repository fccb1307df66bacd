/**
 * @file Bits per byte of documents under a model: what an arithmetic coder led by it would spend on
 * each byte.
 *
 *     bits = Σ −ln p(token) ÷ ln 2 over the tokens of text,  bits per byte = bits ÷ UTF-8 bytes
 *
 * The windows are the trainer's (training/data/validation-batches.ts), so the total is the number
 * that training reports for the same documents. Every byte is counted exactly once, which is
 * asserted; markers have no bytes and cost nothing. Independent of the tokenizer: models and
 * compressors compare. Refuses documents without any text.
 */
import { counted } from "../base/counted.ts";
import { assert, OperationalError } from "../base/errors.ts";
import { ceilDiv } from "../base/integers.ts";
import type { TrainableModel } from "../model/model-types.ts";
import type { Tokenizer } from "../tokenizer/tokenizer.ts";
import type { TokenSource } from "../training/data/token-source.ts";
import { validationBatches } from "../training/data/validation-batches.ts";

export interface EvaluatedDocument {
  readonly name: string;
  readonly text: string;
}

export interface BitsPerByteOptions {
  /** Tokens of a window; as trained, or shorter. */
  readonly seqLength: number;
  /** Windows that are computed together; 8 if left out. */
  readonly numSequences?: number;
  /** Called after every batch with the windows done, of all. */
  readonly onProgress?: (done: number, total: number) => void;
}

export interface TextCost {
  readonly bits: number;
  readonly bytes: number;
  /** 0 for a document without text. */
  readonly bitsPerByte: number;
}

export interface BitsPerByteResult extends TextCost {
  /** Tokens of text. */
  readonly tokens: number;
  /** In the order given. */
  readonly documents: readonly (TextCost & { readonly name: string })[];
}

const SEQUENCES = 8;

/** Evaluate `documents`. Yields to the event loop between batches. */
export async function evaluateBitsPerByte(
  model: Pick<TrainableModel, "config" | "evaluate">,
  tokenizer: Tokenizer,
  documents: readonly EvaluatedDocument[],
  options: BitsPerByteOptions,
): Promise<BitsPerByteResult> {
  const { seqLength, numSequences = SEQUENCES, onProgress } = options;
  const source = encodeDocuments(tokenizer, documents);
  const tally = new Tally(source);
  const numWindows = ceilDiv(source.numFramedTokens - 1, seqLength);
  const lookahead = 1 + model.config.numMtpModules;
  let done = 0;
  for (const batch of validationBatches(source, tokenizer, {
    seqLength,
    lookahead,
    numSequences,
  })) {
    const { tokens, targetBytes } = batch;
    const losses = model.evaluate({ tokens, numSequences: batch.numSequences, seqLength });
    for (let sequence = 0; sequence < batch.numSequences; sequence++) {
      for (let position = 0; position < seqLength; position++) {
        const at = sequence * seqLength + position;
        tally.add(losses[at]!, targetBytes[at]!);
      }
    }
    done += batch.numSequences;
    onProgress?.(done, numWindows);
    await new Promise((resolve) => setImmediate(resolve));
  }
  return summarise(documents, tally);
}

/** Costs of the documents, told apart by where their frames end in the stream of targets. */
class Tally {
  readonly nats: Float64Array;
  readonly bytes: Float64Array;
  tokens = 0;
  #document = 0;
  /**
   * Targets left of the present document's frame; the first one's <bos> is read, never predicted.
   */
  #left: number;
  readonly #source: TokenSource;

  constructor(source: TokenSource) {
    this.nats = new Float64Array(source.numDocuments);
    this.bytes = new Float64Array(source.numDocuments);
    this.#source = source;
    this.#left = this.#frameTokens() - 1;
  }

  /**
   * The next target of the stream; what fills up the last window belongs to no document and has no
   * bytes.
   */
  add(nats: number, bytes: number): void {
    while (this.#left === 0) {
      this.#document++;
      this.#left = this.#frameTokens();
    }
    this.#left--;
    if (bytes === 0) return;
    this.tokens++;
    this.nats[this.#document]! += nats;
    this.bytes[this.#document]! += bytes;
  }

  #frameTokens(): number {
    const isDocument = this.#document < this.#source.numDocuments;
    return isDocument ? this.#source.documentTokens(this.#document) + 2 : Number.POSITIVE_INFINITY;
  }
}

function summarise(documents: readonly EvaluatedDocument[], tally: Tally): BitsPerByteResult {
  const costOf = (nats: number, bytes: number): TextCost => {
    const bits = nats / Math.LN2;
    return { bits, bytes, bitsPerByte: bytes === 0 ? 0 : bits / bytes };
  };
  const costs = documents.map(({ name, text }, index) => {
    const bytes = tally.bytes[index]!;
    const expected = Buffer.byteLength(text.toWellFormed());
    assert(bytes === expected, `${name}: ${bytes} bytes were counted, it has ${expected}`);
    return { name, ...costOf(tally.nats[index]!, bytes) };
  });
  const nats = tally.nats.reduce((sum, x) => sum + x, 0);
  const bytes = tally.bytes.reduce((sum, x) => sum + x, 0);
  if (bytes === 0) {
    const where = counted(documents.length, "document");
    const message = `there is no text in ${where}; give files with text`;
    throw new OperationalError("data.empty", message);
  }
  return { ...costOf(nats, bytes), tokens: tally.tokens, documents: costs };
}

function encodeDocuments(
  tokenizer: Tokenizer,
  documents: readonly EvaluatedDocument[],
): TokenSource & { readonly numFramedTokens: number } {
  const encoded = documents.map(({ text }) => tokenizer.encode(text));
  return {
    numDocuments: encoded.length,
    numFramedTokens: encoded.reduce((sum, tokens) => sum + tokens.length + 2, 0),
    documentTokens: (document) => encoded[document]!.length,
    read: (document, start, count) => encoded[document]!.slice(start, start + count),
  };
}
