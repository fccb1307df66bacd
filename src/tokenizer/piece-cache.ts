/**
 * @file A bounded memory of short pieces and their tokens.
 *
 * Direct-mapped: the hash of a piece's bytes names its one slot, and a new piece overwrites the
 * old. Nothing grows, nothing is evicted, and no strings are kept (a slice of a text would keep the
 * whole text alive).
 */

/** Pieces longer than this, or with more tokens than `PIECE_TOKENS_MAX`, are not kept. */
export const PIECE_BYTES_MAX = 24;
const PIECE_TOKENS_MAX = 8;
const NUM_SLOTS = 2 ** 15;

/** The slot of a piece: FNV-1a of its bytes. */
export function pieceSlot(bytes: Uint8Array, length: number): number {
  let hash = 0x811c9dc5;
  for (let i = 0; i < length; i++) hash = Math.imul(hash ^ bytes[i]!, 0x01000193);
  return (hash ^ (hash >>> 15)) & (NUM_SLOTS - 1);
}

export class PieceCache {
  readonly #keys = new Uint8Array(NUM_SLOTS * PIECE_BYTES_MAX);
  /** 0 in an empty slot. */
  readonly #keyLength = new Uint8Array(NUM_SLOTS);
  readonly #tokens = new Int32Array(NUM_SLOTS * PIECE_TOKENS_MAX);
  readonly #numTokens = new Uint8Array(NUM_SLOTS);

  /** The tokens kept for these bytes, a view; undefined when the slot holds another piece. */
  get(slot: number, bytes: Uint8Array, length: number): Int32Array | undefined {
    if (this.#keyLength[slot] !== length) return undefined;
    const key = slot * PIECE_BYTES_MAX;
    for (let i = 0; i < length; i++) if (this.#keys[key + i] !== bytes[i]) return undefined;
    const first = slot * PIECE_TOKENS_MAX;
    return this.#tokens.subarray(first, first + this.#numTokens[slot]!);
  }

  set(slot: number, bytes: Uint8Array, length: number, tokens: Int32Array): void {
    if (length > PIECE_BYTES_MAX || tokens.length > PIECE_TOKENS_MAX) return;
    this.#keys.set(bytes.subarray(0, length), slot * PIECE_BYTES_MAX);
    this.#keyLength[slot] = length;
    this.#tokens.set(tokens, slot * PIECE_TOKENS_MAX);
    this.#numTokens[slot] = tokens.length;
  }
}
