/**
 * @file A matrix product whose B is packed once and used often: the weights of a model that
 * generates.
 *
 * With few rows the packing of B costs more than the product; packed ahead, B is read once, in
 * order, as fast as memory gives it. The bits of the result are those of the `BlockMultiplier` of
 * the same transposition, dtype and target.
 */

/**
 * Products of one thread with packed operands. Offsets in bytes, strides in elements of the
 * operand.
 */
export interface PackedMultiplier {
  /** Columns of a part must start at a multiple of this. */
  readonly columnUnit: number;
  /** Bytes that B of k × n takes when packed. */
  packedBytes(n: number, k: number): number;
  /** Pack all of B; `packedOffset` is a multiple of 64 with `packedBytes` of room. */
  pack(bOffset: number, bRowStride: number, n: number, k: number, packedOffset: number): void;
  /** Columns [firstColumn, firstColumn + columns) of A · B, for B packed with `n` columns. */
  multiply(product: {
    readonly aOffset: number;
    readonly aRowStride: number;
    readonly packedOffset: number;
    /** Of the first column asked for. */
    readonly outOffset: number;
    readonly outRowStride: number;
    readonly m: number;
    readonly n: number;
    readonly k: number;
    readonly firstColumn: number;
    readonly columns: number;
    readonly accumulate: boolean;
  }): void;
}
