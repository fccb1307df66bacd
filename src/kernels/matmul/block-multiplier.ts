/**
 * @file The core that every matrix product is built on: one block on one thread.
 *
 *     out_MN (=|+=) A · B        A_MK or A_KM (tn), B_KN or B_NK (nt)
 *
 * Offsets are in bytes, strides in elements of the operand. The order in which an element is summed
 * depends on K alone: never on M, N, the strides or the block's place in a larger product. Nothing
 * outside the operands is touched.
 */
export type BlockMultiplier = (
  aOffset: number,
  aRowStride: number,
  bOffset: number,
  bRowStride: number,
  outOffset: number,
  outRowStride: number,
  m: number,
  n: number,
  k: number,
  accumulate: boolean,
) => void;

/** n: as stored; t: transposed. The first letter is A's, the second B's. */
export const TRANSPOSITIONS = ["nn", "nt", "tn"] as const;
export type Transposition = (typeof TRANSPOSITIONS)[number];
