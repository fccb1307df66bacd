/**
 * @file The core that every product of scaled operands is built on: one block on one thread.
 *
 *     out_MN (=|+=) Σ_pieces (Σ_{k in piece} codeA · codeB) · scaleA · scaleB
 *
 * Pieces of `pieceDepth` follow one another from k = 0 on; along k no scale changes within a piece.
 * Nothing outside the operands is touched.
 */
export interface ScaledBlock {
  readonly a: ScaledPlace;
  readonly b: ScaledPlace;
  readonly outOffset: number;
  readonly outRowStride: number;
  readonly m: number;
  readonly n: number;
  readonly k: number;
  readonly pieceDepth: number;
  readonly accumulate: boolean;
}

/**
 * Where a block of an operand stands. Element (r, c) of the block, as stored, has its code at
 * codesOffset + r · rowStride + c, and its scale is f32 number
 * ⌊(firstRow + r) / tileRows⌋ · scaleRowStride + ⌊(firstColumn + c) / tileColumns⌋ from
 * scalesOffset on. Offsets are in bytes, strides in elements.
 */
export interface ScaledPlace {
  readonly codesOffset: number;
  readonly rowStride: number;
  readonly scalesOffset: number;
  readonly scaleRowStride: number;
  readonly tileRows: number;
  readonly tileColumns: number;
  readonly firstRow: number;
  readonly firstColumn: number;
}

export type ScaledBlockMultiplier = (block: ScaledBlock) => void;
