/**
 * @file Fill in the middle, prefix–suffix–middle, as DeepSeek-V3 was trained (report §4.1):
 *
 *     <bos> <fim_begin> prefix <fim_hole> suffix <fim_end> middle <eos>
 *
 * The three parts are encoded apart, so that a gap may begin and end inside a word, as it does
 * under a cursor.
 */
import { OperationalError } from "../base/errors.ts";
import type { SpecialTokenName } from "./special-tokens.ts";
import { TokenBuffer } from "./token-buffer.ts";
import type { Tokenizer } from "./tokenizer.ts";

export interface FimParts {
  readonly prefix: string;
  readonly middle: string;
  readonly suffix: string;
}

/** Whether the vocabulary has the three markers. */
export function supportsFim(tokenizer: Tokenizer): boolean {
  return (["fimBegin", "fimHole", "fimEnd"] as const).every(
    (name) => tokenizer.specialId(name) !== undefined,
  );
}

/** What a model is given to fill a gap; it answers with the middle and `<eos>`. */
export function fimPrompt(tokenizer: Tokenizer, parts: Omit<FimParts, "middle">): Int32Array {
  return encodePrompt(tokenizer, parts).copy();
}

/** A training document with its gap moved to the end. */
export function fimDocument(tokenizer: Tokenizer, parts: FimParts): Int32Array {
  const out = encodePrompt(tokenizer, parts);
  tokenizer.encodeTo(out, parts.middle);
  out.push(tokenizer.eosId);
  return out.copy();
}

function encodePrompt(tokenizer: Tokenizer, parts: Omit<FimParts, "middle">): TokenBuffer {
  const out = new TokenBuffer();
  out.push(tokenizer.bosId);
  out.push(marker(tokenizer, "fimBegin"));
  tokenizer.encodeTo(out, parts.prefix);
  out.push(marker(tokenizer, "fimHole"));
  tokenizer.encodeTo(out, parts.suffix);
  out.push(marker(tokenizer, "fimEnd"));
  return out;
}

function marker(tokenizer: Tokenizer, name: SpecialTokenName): number {
  const id = tokenizer.specialId(name);
  if (id === undefined) {
    throw new OperationalError(
      "tokenizer.fim",
      `the vocabulary has no ${name} marker among its added tokens, so it cannot fill gaps; ` +
        "use a vocabulary with DeepSeek's three fim markers",
    );
  }
  return id;
}
