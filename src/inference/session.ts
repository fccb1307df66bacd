/**
 * @file A session: one sequence's latent cache and the tokens in it.
 *
 * A request keeps the longest beginning that its prompt shares with what is cached, and reads only
 * the rest. That changes no bit of what follows (decoder.ts), so asking twice with a longer prompt
 * is only faster. A session is one conversation; it is used by one request at a time.
 */
import { assert, OperationalError } from "../base/errors.ts";
import { isIntegerIn } from "../base/integers.ts";
import type { Decoder } from "./decoder.ts";
import type { LatentCache } from "./latent-cache.ts";

/** Tokens of a prompt that one pass takes. By feel: large products, small scratch. */
const CHUNK_TOKENS = 256;

export class Session {
  readonly decoder: Decoder;
  /** The most tokens a sequence may have here. */
  readonly contextTokens: number;
  readonly #cache: LatentCache;
  readonly #tokens: Int32Array;

  /** A session for at most `contextTokens` tokens. */
  constructor(decoder: Decoder, contextTokens: number) {
    const most = decoder.model.config.maxPositionEmbeddings;
    if (!isIntegerIn(contextTokens, 1, most)) {
      throw new OperationalError(
        "inference.context",
        `a context of ${contextTokens} tokens was asked for; this model takes 1 to ${most}`,
      );
    }
    this.decoder = decoder;
    this.contextTokens = contextTokens;
    this.#cache = decoder.openCache();
    this.#tokens = new Int32Array(contextTokens);
  }

  /** Drop everything: the model has changed. */
  clear(): void {
    this.#cache.truncate(0);
  }

  /** Drop what `tokens` does not begin with; returns how many of them need not be read again. */
  keepCommon(tokens: Int32Array): number {
    assert(tokens.length > 0, "a sequence begins with at least one token");
    // The last token is read in any case: its logits were not kept.
    const most = Math.min(tokens.length - 1, this.#cache.length);
    let count = 0;
    while (count < most && tokens[count] === this.#tokens[count]) count++;
    this.#cache.truncate(count);
    return count;
  }

  /**
   * Read `tokens` from where `keepCommon` left off; returns the logits after the last. The event
   * loop has a turn between chunks, and `isAborted` is asked before each: null if it said yes.
   */
  async read(tokens: Int32Array, isAborted: () => boolean): Promise<Float32Array | null> {
    for (;;) {
      if (isAborted()) return null;
      const start = this.#cache.length;
      const chunk = tokens.subarray(start, start + CHUNK_TOKENS);
      const isLast = start + chunk.length === tokens.length;
      const logits = this.#feed(chunk, isLast ? "last" : "none");
      if (isLast) return logits;
      await nextTurn();
    }
  }

  /** The logits after one more token. */
  append(token: number): Float32Array {
    return this.#feed(Int32Array.of(token), "last");
  }

  #feed(tokens: Int32Array, logits: "none" | "last"): Float32Array {
    const start = this.#cache.length;
    const [result] = this.decoder.forward([{ cache: this.#cache, tokens, logits }]);
    this.#tokens.set(tokens, start);
    return result!;
  }
}

/** Let timers, streams and signals have their turn. */
export function nextTurn(): Promise<void> {
  return new Promise((resolve) => setImmediate(resolve));
}
