/**
 * @file Products of scaled operands over a target's f32 cores, piece by piece: the portable tier,
 * for processors without AVX-512.
 *
 *     sums_MN = Σ_{k in piece} codeA · codeB
 *     out_MN (=|+=) Σ_p sums · (scaleA(m, p) · scaleB(p, n))
 *
 * Row programs make values of codes and promote sums; a core multiplies in between. A piece is cut
 * where the values' room ends, which depends on K and the piece alone.
 */
import { floorDiv } from "../../base/integers.ts";
import type { RowProgram } from "../../codegen/vector/program.ts";
import { rowProgram } from "../../codegen/vector/recorder.ts";
import type { CpuMemory } from "../../device/cpu/memory.ts";
import type { Span, ThreadContext } from "../../device/program.ts";
import type { BlockMultiplier, Transposition } from "../matmul/block-multiplier.ts";
import { decodedValue } from "../quantize-tiles/programs.ts";
import { FORMATS } from "../quantize-tiles/reference.ts";
import { perRow, row, vector } from "../row-operands.ts";
import { type RowRunner, wasmRowRunner } from "../row-runner.ts";
import type { ProductFormat } from "./contract.ts";
import type { ScaledBlock, ScaledBlockMultiplier, ScaledPlace } from "./scaled-block.ts";

/** Lanes and depth whose values, and lanes whose sums, there is room for. */
const LANE_BLOCK = 256;
const DEPTH_BLOCK = 512;
const VALUES_BYTES = LANE_BLOCK * DEPTH_BLOCK * 4;
const SCALES_BYTES = LANE_BLOCK * 4;
const SUMS_BYTES = LANE_BLOCK * LANE_BLOCK * 4;

interface Range {
  readonly first: number;
  readonly count: number;
}

/** An operand's part in one piece: values from `at` on. */
interface Part {
  readonly at: number;
  readonly stride: number;
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
  const aScalesAt = sumsAt + SUMS_BYTES;
  const bScalesAt = aScalesAt + SCALES_BYTES;
  const used = bScalesAt + SCALES_BYTES - aAt;
  const rest = { byteOffset: aAt + used, byteLength: scratch.byteLength - used };
  const multiply = makeCore(rest);
  const aPlaces = { at: aAt, scalesAt: aScalesAt };
  const bPlaces = { at: bAt, scalesAt: bScalesAt };
  const readA = makeReader(context, formats[0], transposition !== "tn", aPlaces);
  const readB = makeReader(context, formats[1], transposition === "nt", bPlaces);
  const promote = [false, true].map((adds) =>
    wasmRowRunner(() => promotionProgram(adds), context),
  ) as [RowRunner, RowRunner];
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
          const out = block.outOffset + 4 * (rows.first * block.outRowStride + columns.first);
          promote[block.accumulate || d > 0 ? 1 : 0](rows.count, columns.count, [
            [sumsAt, columns.count],
            [aScalesAt, 1],
            [bScalesAt, 0],
            [out, block.outRowStride],
          ]);
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

/** Makes values of codes, from `at` on, and gathers the scales of their lanes. */
function makeReader(
  context: ThreadContext,
  format: ProductFormat,
  isDepthContiguous: boolean,
  { at, scalesAt }: { readonly at: number; readonly scalesAt: number },
): ReadPart {
  const decode = wasmRowRunner(() => valuesProgram(format), context);
  return (place, lanes, depth) => {
    const { f32 } = context.memory;
    const [rows, columns] = isDepthContiguous ? [lanes, depth] : [depth, lanes];
    const codes = place.codesOffset + rows.first * place.rowStride + columns.first;
    decode(rows.count, columns.count, [
      [codes, place.rowStride],
      [at, columns.count],
    ]);
    for (let lane = 0; lane < lanes.count; lane++) {
      const [r, c] = isDepthContiguous
        ? [lanes.first + lane, depth.first]
        : [depth.first, lanes.first + lane];
      const scaleRow = floorDiv(place.firstRow + r, place.tileRows) * place.scaleRowStride;
      const tile = floorDiv(place.firstColumn + c, place.tileColumns);
      f32[scalesAt / 4 + lane] = f32[place.scalesOffset / 4 + scaleRow + tile]!;
    }
    return { at, stride: columns.count };
  };
}

/** out ← the values of codes. */
function valuesProgram(format: ProductFormat): RowProgram {
  return rowProgram({
    name: `values/${format}`,
    operands: { codes: row("u8"), out: row() },
    scalars: [],
    body(v, { codes, out }) {
      v.columns(() => v.store(out, decodedValue(v, FORMATS[format], v.loadBits(codes))));
    },
  });
}

/** out ← sums · (row's scale · column's scale), added where `adds`. */
function promotionProgram(adds: boolean): RowProgram {
  return rowProgram({
    name: `promotion${adds ? ".adding" : ""}`,
    operands: { sums: row(), rowScale: perRow(), scales: vector(), out: row() },
    scalars: [],
    body(v, { sums, rowScale, scales, out }) {
      const factor = v.loadPerRow(rowScale);
      v.columns(() => {
        const scale = v.mul(factor, v.load(scales));
        const promoted = v.mul(v.load(sums), scale);
        v.store(out, adds ? v.add(v.load(out), promoted) : promoted);
      });
    },
  });
}
