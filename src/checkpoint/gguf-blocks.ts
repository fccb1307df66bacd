/**
 * @file The block formats of GGUF that are written here: 32 values of a row with one F16 scale.
 *
 *     Q8_0   F16 scale, 32 signed bytes                            value = scale · code
 *     Q4_0   F16 scale, 16 bytes: values 0..15 in the low nibbles,
 *            16..31 in the high ones                               value = scale · (nibble − 8)
 *
 * Codes and scales are those of symmetric groups of 32 (numerics/integer-groups.ts), so a file
 * holds what `int8:g32` and `int4:g32` hold, but for scales below 2^-17 that F16 rounds. Source:
 * block_q8_0 and block_q4_0 of the ggml project.
 */
import { assert } from "../base/errors.ts";
import { divExact } from "../base/integers.ts";
import { type GroupRule, makeCodedRow, quantizeRow } from "../numerics/integer-groups.ts";

export const BLOCK_DTYPES = ["Q8_0", "Q4_0"] as const;
export type BlockDtype = (typeof BLOCK_DTYPES)[number];

/** Values of a block. */
export const BLOCK_VALUES = 32;

export const BLOCK_BYTES: Readonly<Record<BlockDtype, number>> = { Q8_0: 2 + 32, Q4_0: 2 + 16 };

/** The bytes of values in blocks; their count must be a multiple of 32. */
export function encodeBlocks(dtype: BlockDtype, values: Float32Array): Uint8Array {
  const rule: GroupRule = { bits: dtype === "Q8_0" ? 8 : 4, groupSize: 32, asymmetric: false };
  const blocks = divExact(values.length, BLOCK_VALUES);
  const out = new Uint8Array(blocks * BLOCK_BYTES[dtype]);
  const view = new DataView(out.buffer);
  const block = makeCodedRow(BLOCK_VALUES, BLOCK_VALUES);
  for (let index = 0; index < blocks; index++) {
    const start = index * BLOCK_VALUES;
    quantizeRow(values.subarray(start, start + BLOCK_VALUES), rule, block);
    const at = index * BLOCK_BYTES[dtype];
    view.setFloat16(at, block.scales[0]!, true);
    if (dtype === "Q8_0") new Int8Array(out.buffer, at + 2, BLOCK_VALUES).set(block.codes);
    else packNibbles(block.codes, out.subarray(at + 2, at + BLOCK_BYTES[dtype]));
  }
  return out;
}

function packNibbles(codes: Int8Array, out: Uint8Array): void {
  const half = BLOCK_VALUES / 2;
  assert(out.length === half, "two codes a byte");
  for (let at = 0; at < half; at++) out[at] = (codes[at]! + 8) | ((codes[at + half]! + 8) << 4);
}

/** The values of blocks. */
export function decodeBlocks(dtype: BlockDtype, bytes: Uint8Array, out: Float32Array): void {
  const blocks = divExact(out.length, BLOCK_VALUES);
  assert(bytes.length === blocks * BLOCK_BYTES[dtype], `${bytes.length} bytes of ${dtype}`);
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  for (let at = 0; at < out.length; at++) {
    const block = Math.floor(at / BLOCK_VALUES) * BLOCK_BYTES[dtype];
    const within = at % BLOCK_VALUES;
    const code =
      dtype === "Q8_0"
        ? view.getInt8(block + 2 + within)
        : ((bytes[block + 2 + (within % 16)]! >> (within < 16 ? 0 : 4)) & 15) - 8;
    out[at] = view.getFloat16(block, true) * code;
  }
}
