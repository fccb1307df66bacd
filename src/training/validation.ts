/**
 * @file Bits per byte of held-out text: how many bits an arithmetic coder led by the model would
 * spend on each byte.
 *
 *     Σ −ln p(target) over targets with bytes ÷ (ln 2 · Σ their bytes)
 *
 * Does not depend on the tokenizer, so models and compressors compare. data/validation-batches.ts
 * says what is counted.
 */
import type { TrainableModel } from "../model/model-types.ts";
import type { Tokenizer } from "../tokenizer/tokenizer.ts";
import type { TokenSource } from "./data/token-source.ts";
import { validationBatches } from "./data/validation-batches.ts";

export interface ValidationOptions {
  readonly sequenceLength: number;
  /** Sequences that are computed together. */
  readonly microBatch: number;
  /** At most this many sequences, evenly spread; all if left out. */
  readonly sequencesMax?: number;
  /** Called between batches with the share that is done. */
  readonly onProgress?: (share: number) => void;
}

export interface ValidationResult {
  readonly bitsPerByte: number;
  /** Mean −ln p of the counted tokens. */
  readonly loss: number;
  readonly bytes: number;
  readonly tokens: number;
}

/** Evaluate the model on held-out documents; undefined if they hold no byte of text. */
export function validate(
  model: Pick<TrainableModel, "config" | "evaluate">,
  source: TokenSource,
  tokenizer: Tokenizer,
  options: ValidationOptions,
): ValidationResult | undefined {
  const { sequenceLength, microBatch, sequencesMax = Number.POSITIVE_INFINITY } = options;
  const numWindows = Math.min(sequencesMax, countWindows(source, sequenceLength));
  let [nats, bytes, tokens, sequences] = [0, 0, 0, 0];
  for (const batch of validationBatches(source, tokenizer, {
    seqLength: sequenceLength,
    lookahead: 1 + model.config.numMtpModules,
    numSequences: microBatch,
    windowsMax: sequencesMax,
  })) {
    const losses = model.evaluate({
      tokens: batch.tokens,
      numSequences: batch.numSequences,
      seqLength: sequenceLength,
    });
    for (let position = 0; position < losses.length; position++) {
      if (batch.targetBytes[position] === 0) continue;
      nats += losses[position]!;
      tokens++;
    }
    bytes += batch.bytes;
    sequences += batch.numSequences;
    options.onProgress?.(Math.min(1, sequences / numWindows));
  }
  if (bytes === 0) return undefined;
  return { bitsPerByte: nats / (Math.LN2 * bytes), loss: nats / tokens, bytes, tokens };
}

function countWindows(source: TokenSource, sequenceLength: number): number {
  let total = 0;
  for (let document = 0; document < source.numDocuments; document++) {
    total += source.documentTokens(document) + 2;
  }
  return Math.max(1, Math.ceil((total - 1) / sequenceLength));
}
