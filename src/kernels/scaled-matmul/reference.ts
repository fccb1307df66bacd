/**
 * @file Products of scaled operands, plainly: three loops, pieces of K, f64 sums; and the bit model
 * of the tensor core in their place. The oracle for every implementation.
 */
import { assert } from "../../base/errors.ts";
import { ceilDiv, floorDiv } from "../../base/integers.ts";
import type { CpuMemory } from "../../device/cpu/memory.ts";
import type { KernelBody, ThreadContext } from "../../device/program.ts";
import { sumHopperFp8 } from "../../numerics/accumulate.ts";
import { E4M3, E5M2 } from "../../numerics/fp8.ts";
import type { Transposition } from "../matmul/block-multiplier.ts";
import { scaledMatmulBody } from "./body.ts";
import { type ProductFormat, SCALED_MATMUL_VARIANTS } from "./contract.ts";
import type { ScaledBlock, ScaledBlockMultiplier, ScaledPlace } from "./scaled-block.ts";

const VALUES: Readonly<Record<ProductFormat, Float32Array>> = {
  e4m3: E4M3.values,
  e5m2: E5M2.values,
};

export interface ScaledVariant {
  readonly transposition: Transposition;
  readonly aFormat: ProductFormat;
  readonly bFormat: ProductFormat;
  readonly isTensorCore: boolean;
}

/** "nt.e4m3.e5m2" or "nt.tensorCore" taken apart. */
export function parseScaledVariant(variant: string): ScaledVariant {
  assert(SCALED_MATMUL_VARIANTS.includes(variant), `unknown scaled matmul variant ${variant}`);
  const [transposition, aFormat, bFormat] = variant.split(".") as [Transposition, string, string];
  const isTensorCore = aFormat === "tensorCore";
  return {
    transposition,
    aFormat: isTensorCore ? "e4m3" : (aFormat as ProductFormat),
    bFormat: isTensorCore ? "e4m3" : (bFormat as ProductFormat),
    isTensorCore,
  };
}

export function createReferenceScaledMatmul(variant: string, context: ThreadContext): KernelBody {
  const { transposition } = parseScaledVariant(variant);
  return scaledMatmulBody(createReferenceScaledMultiplier(variant, context), transposition);
}

/** The block core: every element's codes and scales along K, then their sum. */
export function createReferenceScaledMultiplier(
  variant: string,
  context: ThreadContext,
): ScaledBlockMultiplier {
  const parsed = parseScaledVariant(variant);
  const { transposition, aFormat, bFormat } = parsed;
  const sum = parsed.isTensorCore ? sumTensorCore : sumDouble;
  return (block) => {
    const { memory } = context;
    const { m, n, k, accumulate, outOffset, outRowStride, pieceDepth } = block;
    const length = { depth: k, numPieces: ceilDiv(k, pieceDepth) };
    const columns = Array.from({ length: n }, (_, column) => {
      const line = emptyLine(bFormat, length);
      readLine(memory, block.b, transposition !== "nt", column, block, line);
      return line;
    });
    const a = emptyLine(aFormat, length);
    for (let row = 0; row < m; row++) {
      readLine(memory, block.a, transposition === "tn", row, block, a);
      for (let column = 0; column < n; column++) {
        const at = outOffset / 4 + row * outRowStride + column;
        const total = sum(a, columns[column]!, block);
        memory.f32[at] = accumulate ? memory.f32[at]! + total : total;
      }
    }
  };
}

/** One operand's codes along K for one row or column of the output, and the scale of each piece. */
interface Line {
  readonly values: Float32Array;
  readonly codes: Uint8Array;
  readonly scales: Float32Array;
}

function emptyLine(
  format: ProductFormat,
  { depth, numPieces }: { readonly depth: number; readonly numPieces: number },
): Line {
  return {
    values: VALUES[format],
    codes: new Uint8Array(depth),
    scales: new Float32Array(numPieces),
  };
}

/** Codes stand in a row of the operand, or down a column of it. */
function readLine(
  memory: CpuMemory,
  place: ScaledPlace,
  downColumn: boolean,
  index: number,
  { k, pieceDepth }: ScaledBlock,
  line: Line,
): void {
  const { codesOffset, rowStride, scalesOffset, scaleRowStride, tileRows, tileColumns } = place;
  const [rowStep, columnStep] = downColumn ? [1, 0] : [0, 1];
  const [row, column] = downColumn ? [0, index] : [index, 0];
  for (let depth = 0; depth < k; depth++) {
    const r = row + rowStep * depth;
    const c = column + columnStep * depth;
    line.codes[depth] = memory.u8[codesOffset + r * rowStride + c]!;
    if (depth % pieceDepth !== 0) continue;
    const scaleRow = floorDiv(place.firstRow + r, tileRows);
    const scaleColumn = floorDiv(place.firstColumn + c, tileColumns);
    line.scales[floorDiv(depth, pieceDepth)] =
      memory.f32[scalesOffset / 4 + scaleRow * scaleRowStride + scaleColumn]!;
  }
}

function sumDouble(a: Line, b: Line, { k, pieceDepth }: ScaledBlock): number {
  let total = 0;
  for (let start = 0, piece = 0; start < k; start += pieceDepth, piece++) {
    const end = Math.min(start + pieceDepth, k);
    let sum = 0;
    for (let depth = start; depth < end; depth++) {
      sum += a.values[a.codes[depth]!]! * b.values[b.codes[depth]!]!;
    }
    total += sum * (a.scales[piece]! * b.scales[piece]!);
  }
  return total;
}

function sumTensorCore(a: Line, b: Line, { k, pieceDepth }: ScaledBlock): number {
  const isNan = (code: number): boolean => (code & 0x7f) === 0x7f;
  if (a.codes.some(isNan) || b.codes.some(isNan)) return Number.NaN;
  let total = 0;
  for (let start = 0, piece = 0; start < k; start += pieceDepth, piece++) {
    const sum = sumHopperFp8(a.codes, b.codes, { start, end: Math.min(start + pieceDepth, k) });
    const scale = Math.fround(a.scales[piece]! * b.scales[piece]!);
    total = Math.fround(total + Math.fround(sum * scale));
  }
  return total;
}
