/**
 * @file Products of coded weights over a target's f32 cores: the portable tier, for processors
 * whose machine code cannot read codes.
 *
 * Values are opened here, each once a product: value = f32(scale · (code + offset)), and a core
 * multiplies them. For many rows that is small beside the product; a product of one row reads codes
 * at the speed of this loop (5 ns a weight), not of memory.
 */
import { floorDiv } from "../../base/integers.ts";
import type { CpuMemory } from "../../device/cpu/memory.ts";
import type { Span, ThreadContext } from "../../device/program.ts";
import type { BlockMultiplier } from "../matmul/block-multiplier.ts";
import type { CodedBlock, CodedBlockMultiplier } from "./coded-block.ts";
import { groupAt, openRun } from "./codes.ts";
import { parseCodedVariant } from "./contract.ts";

/** Rows, columns and depth whose values there is room for. */
const LANE_BLOCK = 256;
const DEPTH_BLOCK = 512;
const VALUES_BYTES = LANE_BLOCK * DEPTH_BLOCK * 4;

/** `makeCore` makes the f32 core ("nt") over the scratch that values leave. */
export function createPortableCodedMultiplier(
  variant: string,
  { memory, scratch }: ThreadContext,
  makeCore: (scratch: Span) => BlockMultiplier,
): CodedBlockMultiplier {
  const { format, hasOffsets } = parseCodedVariant(variant);
  const [aAt, bAt] = [scratch.byteOffset, scratch.byteOffset + VALUES_BYTES];
  const used = 2 * VALUES_BYTES;
  const multiply = makeCore({
    byteOffset: scratch.byteOffset + used,
    byteLength: scratch.byteLength - used,
  });
  const openColumns = (block: CodedBlock, columns: Range, depth: Range): void => {
    for (let index = 0; index < columns.count; index++) {
      const column = columns.first + index;
      const out = bAt / 4 + index * depth.count;
      for (let d = 0; d < depth.count; ) {
        const group = floorDiv(depth.first + d, block.groupSize);
        const end = Math.min(depth.count, (group + 1) * block.groupSize - depth.first);
        const { scale, offset } = groupAt(memory, format, hasOffsets, block, { column, group });
        const run = { column, first: depth.first + d, end: depth.first + end, scale, offset };
        openRun(memory, format, block, run, out + d);
        d = end;
      }
    }
  };
  return (block) => {
    const { m, n, k, outOffset, outRowStride } = block;
    if (k === 0 && !block.accumulate) zero(memory, block);
    for (const depth of rangesOf(k, DEPTH_BLOCK)) {
      const adds = block.accumulate || depth.first > 0;
      for (const columns of rangesOf(n, LANE_BLOCK)) {
        openColumns(block, columns, depth);
        for (const rows of rangesOf(m, LANE_BLOCK)) {
          openRows(memory, block, rows, depth, aAt);
          const out = outOffset + 4 * (rows.first * outRowStride + columns.first);
          const sizes = [rows.count, columns.count, depth.count] as const;
          multiply(aAt, depth.count, bAt, depth.count, out, outRowStride, ...sizes, adds);
        }
      }
    }
  };
}

interface Range {
  readonly first: number;
  readonly count: number;
}

function rangesOf(count: number, block: number): readonly Range[] {
  return Array.from({ length: Math.ceil(count / block) }, (_, index) => {
    const first = index * block;
    return { first, count: Math.min(block, count - first) };
  });
}

/** bf16 to f32: the high half of a word. */
function openRows(
  memory: CpuMemory,
  block: CodedBlock,
  rows: Range,
  depth: Range,
  to: number,
): void {
  const { u16, i32 } = memory;
  for (let index = 0; index < rows.count; index++) {
    const from = block.aOffset / 2 + (rows.first + index) * block.aRowStride + depth.first;
    const out = to / 4 + index * depth.count;
    for (let d = 0; d < depth.count; d++) i32[out + d] = u16[from + d]! << 16;
  }
}

function zero({ f32 }: CpuMemory, { outOffset, outRowStride, m, n }: CodedBlock): void {
  for (let row = 0; row < m; row++) {
    const first = outOffset / 4 + row * outRowStride;
    f32.fill(0, first, first + n);
  }
}
