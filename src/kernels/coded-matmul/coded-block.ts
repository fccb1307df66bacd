/**
 * @file The core that products of coded weights are built on: one block on one thread.
 *
 *     out_MN (=|+=) Σ_g scale · Σ_{k in g} a_MK · (code_NK + offset)
 *
 * The block begins with a panel of the weight. Offsets are in bytes, strides in elements.
 */
export interface CodedBlock {
  readonly aOffset: number;
  readonly aRowStride: number;
  /** Of the block's first panel. */
  readonly codesOffset: number;
  readonly panelCodeBytes: number;
  readonly scalesOffset: number;
  /** Scales (and offsets) from one panel to the next. */
  readonly panelScales: number;
  /** Nothing stands there in symmetric weights. */
  readonly offsetsOffset: number;
  readonly groupSize: number;
  readonly outOffset: number;
  readonly outRowStride: number;
  readonly m: number;
  readonly n: number;
  readonly k: number;
  readonly accumulate: boolean;
}

export type CodedBlockMultiplier = (block: CodedBlock) => void;
