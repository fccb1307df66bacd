/** @file Reading coded weights out of device memory, value by value: for the plain tiers. */
import type { CpuMemory } from "../../device/cpu/memory.ts";
import { fromBf16 } from "../../numerics/bf16.ts";
import { E4M3 } from "../../numerics/fp8.ts";
import { type CodedFormat, PANEL_ROWS } from "../../tensor/coded-weight.ts";
import type { CodedBlock } from "./coded-block.ts";

/** What each byte of 8-bit codes stands for; each nibble of 4-bit codes. */
export const CODE_VALUES: Readonly<Record<CodedFormat, Float32Array>> = {
  int8: Float32Array.from({ length: 256 }, (_, byte) => (byte < 128 ? byte : 128 - byte)),
  int4: Float32Array.from({ length: 16 }, (_, nibble) => nibble - 8),
  e4m3: E4M3.values,
};

/** The value of the code of a column of the block at depth `k`, without its scale and offset. */
export function codeAt(
  { u8 }: CpuMemory,
  format: CodedFormat,
  { codesOffset, panelCodeBytes }: CodedBlock,
  column: number,
  k: number,
): number {
  const lane = column & (PANEL_ROWS - 1);
  const panel = codesOffset + (column >> 4) * panelCodeBytes;
  const [step, within] = [k >> 5, k & 31];
  if (format === "int4") {
    const j = (within >> 1) & 3;
    const byte = panel + step * 256 + 64 * (within >> 3) + 4 * lane + 2 * (k & 1) + (j >> 1);
    return CODE_VALUES.int4[(u8[byte]! >> (4 * (j & 1))) & 15]!;
  }
  const inVector = 16 * (lane >> 2) + 8 * ((within >> 1) & 1) + 2 * (lane & 3) + (k & 1);
  return CODE_VALUES[format][u8[panel + step * 512 + 64 * (within >> 2) + inVector]!]!;
}

/** Scale and offset of a column of the block in a group. */
export function groupAt(
  { u8, u16, f32 }: CpuMemory,
  format: CodedFormat,
  hasOffsets: boolean,
  { scalesOffset, offsetsOffset, panelScales }: CodedBlock,
  place: { readonly column: number; readonly group: number },
): { readonly scale: number; readonly offset: number } {
  const { column, group } = place;
  const at = (column >> 4) * panelScales + group * PANEL_ROWS + (column & (PANEL_ROWS - 1));
  const scale =
    format === "e4m3" ? f32[scalesOffset / 4 + at]! : fromBf16(u16[scalesOffset / 2 + at]!);
  return { scale, offset: hasOffsets ? (u8[offsetsOffset + at]! << 24) >> 24 : 0 };
}

/** A run of depth within a group of one column. */
interface Run {
  readonly column: number;
  readonly first: number;
  readonly end: number;
  readonly scale: number;
  readonly offset: number;
}

/** The values of a run, scale · (code + offset), to f32 number `to` and on. */
export function openRun(
  memory: CpuMemory,
  format: CodedFormat,
  { codesOffset, panelCodeBytes }: CodedBlock,
  { column, first, end, scale, offset }: Run,
  to: number,
): void {
  const { u8, f32 } = memory;
  const values = CODE_VALUES[format];
  const lane = column & (PANEL_ROWS - 1);
  const panel = codesOffset + (column >> 4) * panelCodeBytes;
  const at = to - first;
  if (format === "int4") {
    const start = panel + 4 * lane;
    for (let k = first; k < end; k++) {
      const byte = start + 256 * (k >> 5) + 8 * (k & 24) + 2 * (k & 1) + ((k >> 2) & 1);
      f32[at + k] = scale * (values[(u8[byte]! >> (2 * (k & 2))) & 15]! + offset);
    }
    return;
  }
  const start = panel + 16 * (lane >> 2) + 2 * (lane & 3);
  for (let k = first; k < end; k++) {
    const byte = start + 512 * (k >> 5) + 16 * (k & 28) + 4 * (k & 2) + (k & 1);
    f32[at + k] = scale * (values[u8[byte]!]! + offset);
  }
}
