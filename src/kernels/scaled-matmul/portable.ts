/**
 * @file Products of scaled operands over a target's f32 cores, piece by piece: the portable tier,
 * for processors without AVX-512.
 *
 *     sums_MN = Σ_{k in piece} codeA · codeB
 *     out_MN (=|+=) Σ_p sums · (scaleA(m, p) · scaleB(p, n))
 *
 * Codes become values through a table, a core multiplies them, and the promotion is a loop here: it
 * costs about a third of the core's time for pieces of 128. A piece is cut where the values' room
 * ends, which depends on K and the piece alone.
 */
import { floorDiv } from "../../base/integers.ts";
import type { CpuMemory } from "../../device/cpu/memory.ts";
import type { Span, ThreadContext } from "../../device/program.ts";
import { E4M3, E5M2 } from "../../numerics/fp8.ts";
import type { BlockMultiplier, Transposition } from "../matmul/block-multiplier.ts";
import type { ProductFormat } from "./contract.ts";
import type { ScaledBlock, ScaledBlockMultiplier, ScaledPlace } from "./scaled-block.ts";

/** Lanes and depth whose values, and lanes whose sums, there is room for. */
const LANE_BLOCK = 256;
const DEPTH_BLOCK = 512;
const VALUES_BYTES = LANE_BLOCK * DEPTH_BLOCK * 4;
const SUMS_BYTES = LANE_BLOCK * LANE_BLOCK * 4;

const VALUES: Readonly<Record<ProductFormat, Float32Array>> = {
  e4m3: E4M3.values,
  e5m2: E5M2.values,
};

interface Range {
  readonly first: number;
  readonly count: number;
}

/** An operand's part in one piece: values on the device from `at` on, scales of its lanes here. */
interface Part {
  readonly at: number;
  readonly stride: number;
  readonly scales: Float32Array;
}

type ReadPart = (place: ScaledPlace, lanes: Range, depth: Range) => Part;

/** `makeCore` makes the f32 core over the scratch that values and sums leave. */
export function createPortableScaledMultiplier(
  transposition: Transposition,
  formats: readonly [a: ProductFormat, b: ProductFormat],
  context: ThreadContext,
  makeCore: (scratch: Span) => BlockMultiplier,
): ScaledBlockMultiplier {
  const { memory, scratch } = context;
  const aAt = scratch.byteOffset;
  const bAt = aAt + VALUES_BYTES;
  const sumsAt = bAt + VALUES_BYTES;
  const used = 2 * VALUES_BYTES + SUMS_BYTES;
  const rest = { byteOffset: aAt + used, byteLength: scratch.byteLength - used };
  const multiply = makeCore(rest);
  const readA = makeReader(memory, formats[0], transposition !== "tn", aAt);
  const readB = makeReader(memory, formats[1], transposition === "nt", bAt);
  return (block) => {
    const { m, n, k, pieceDepth } = block;
    if (k === 0) return zeroUnlessAdding(memory, block);
    const cut = Math.min(pieceDepth, DEPTH_BLOCK);
    for (let d = 0; d < k; ) {
      const pieceEnd = Math.min(k, (floorDiv(d, pieceDepth) + 1) * pieceDepth);
      const depth = { first: d, count: Math.min(cut, pieceEnd - d) };
      for (const columns of rangesOf(n)) {
        const b = readB(block.b, columns, depth);
        for (const rows of rangesOf(m)) {
          const a = readA(block.a, rows, depth);
          const sizes = [rows.count, columns.count, depth.count] as const;
          multiply(a.at, a.stride, b.at, b.stride, sumsAt, columns.count, ...sizes, false);
          promote(memory, sumsAt, block, { rows, columns, a, b, adds: block.accumulate || d > 0 });
        }
      }
      d += depth.count;
    }
  };
}

function rangesOf(count: number): readonly Range[] {
  return Array.from({ length: Math.ceil(count / LANE_BLOCK) }, (_, index) => {
    const first = index * LANE_BLOCK;
    return { first, count: Math.min(LANE_BLOCK, count - first) };
  });
}

function zeroUnlessAdding({ f32 }: CpuMemory, block: ScaledBlock): void {
  if (block.accumulate) return;
  for (let row = 0; row < block.m; row++) {
    const first = block.outOffset / 4 + row * block.outRowStride;
    f32.fill(0, first, first + block.n);
  }
}

/** Sums times scales, written to the output or added. */
function promote(
  { f32 }: CpuMemory,
  sumsAt: number,
  { outOffset, outRowStride }: ScaledBlock,
  part: {
    readonly rows: Range;
    readonly columns: Range;
    readonly a: Part;
    readonly b: Part;
    readonly adds: boolean;
  },
): void {
  const { rows, columns, a, b, adds } = part;
  for (let row = 0; row < rows.count; row++) {
    const sums = sumsAt / 4 + row * columns.count;
    const out = outOffset / 4 + (rows.first + row) * outRowStride + columns.first;
    const rowScale = a.scales[row]!;
    for (let column = 0; column < columns.count; column++) {
      const promoted = f32[sums + column]! * (rowScale * b.scales[column]!);
      f32[out + column] = adds ? f32[out + column]! + promoted : promoted;
    }
  }
}

/** Reads codes as they are stored, into values from `at` on. */
function makeReader(
  memory: CpuMemory,
  format: ProductFormat,
  isDepthContiguous: boolean,
  at: number,
): ReadPart {
  const values = VALUES[format];
  const scales = new Float32Array(LANE_BLOCK);
  return (place, lanes, depth) => {
    const { u8, f32 } = memory;
    const [rows, columns] = isDepthContiguous ? [lanes, depth] : [depth, lanes];
    for (let row = 0; row < rows.count; row++) {
      const codes = place.codesOffset + (rows.first + row) * place.rowStride + columns.first;
      const out = at / 4 + row * columns.count;
      for (let column = 0; column < columns.count; column++) {
        f32[out + column] = values[u8[codes + column]!]!;
      }
    }
    for (let lane = 0; lane < lanes.count; lane++) {
      const [r, c] = isDepthContiguous
        ? [lanes.first + lane, depth.first]
        : [depth.first, lanes.first + lane];
      const scaleRow = floorDiv(place.firstRow + r, place.tileRows) * place.scaleRowStride;
      const tile = floorDiv(place.firstColumn + c, place.tileColumns);
      scales[lane] = f32[place.scalesOffset / 4 + scaleRow + tile]!;
    }
    return { at, stride: columns.count, scales };
  };
}
