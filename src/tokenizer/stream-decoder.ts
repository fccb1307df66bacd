/**
 * @file Tokens to text, as they come: a character is given out when its last byte is there.
 *
 * A token may end inside a character, so a stream of tokens is decoded with state. Invalid UTF-8
 * becomes U+FFFD as the Encoding Standard says (the Hugging Face tokenizers do the same); a byte
 * order mark is kept, it is text. An added token ends the bytes before it and stands as its own
 * spelling, or for nothing when it is skipped.
 */
import type { AddedToken } from "./special-tokens.ts";

/** What a decoder asks of a vocabulary. */
export interface TokenTexts {
  /** Throws for an id outside the vocabulary. */
  tokenBytes(id: number): Uint8Array;
  addedToken(id: number): AddedToken | undefined;
}

export interface DecodeOptions {
  /** Leaves out the added tokens marked special; false unless said otherwise. */
  readonly skipSpecialTokens?: boolean;
}

/** The text of a stream of tokens; `end` gives what is left, an incomplete character as U+FFFD. */
export class StreamDecoder {
  readonly #decoder = new TextDecoder("utf-8", { ignoreBOM: true });
  readonly #texts: TokenTexts;
  readonly #skipSpecialTokens: boolean;

  constructor(texts: TokenTexts, options: DecodeOptions = {}) {
    this.#texts = texts;
    this.#skipSpecialTokens = options.skipSpecialTokens ?? false;
  }

  /** The text that token `id` decides, without the first `skip` of its bytes. */
  push(id: number, skip = 0): string {
    const added = this.#texts.addedToken(id);
    if (added === undefined) {
      const bytes = this.#texts.tokenBytes(id).subarray(skip);
      return this.#decoder.decode(bytes, { stream: true });
    }
    const isSkipped = added.special && this.#skipSpecialTokens;
    return isSkipped ? "" : this.end() + added.content;
  }

  end(): string {
    return this.#decoder.decode();
  }
}
