/**
 * @file Matrix products in x86-64 machine code.
 *
 * One native function multiplies one cache block: it packs its share of A and B (if asked to) and runs the core over
 * the panels. The loops over cache blocks are here: depth outermost (its blocks depend on K alone, and are added to the
 * output in rising order), then blocks of rows, then slices of columns that stay in the second-level cache.
 */
import { assert } from "../../base/errors.ts";
import { roundUp } from "../../base/integers.ts";
import { emitKernel, loadSlot } from "../../codegen/x64/kernel-function.ts";
import { mem, r } from "../../codegen/x64/operands.ts";
import type { Span, ThreadContext } from "../../device/program.ts";
import { slotIndex } from "../kernel.ts";
import type { BlockMultiplier, Transposition } from "./block-multiplier.ts";
import {
  elementsPerWord,
  emitCopyingPack,
  emitTransposingPack,
  emitWords,
  PACK_ARGUMENTS,
  PACK_SLACK_BYTES,
  type X64InputDType,
} from "./x64-pack.ts";
import { CORE_ARGUMENTS, emitVectorCore, TILE_ROWS, TILE_VECTORS } from "./x64-vector-core.ts";

/** Words of depth in a block: a panel of A (12 × 512 words) stays in a first-level cache. */
export const DEPTH_BLOCK_WORDS = 512;
/** Columns whose packed B stays in the second-level cache beside the panels of A passing by. */
const SLICE_COLUMNS = 256;
/** Rows whose packed A is kept. */
const MAX_ROWS = 1536;
const TILE_COLUMNS = TILE_VECTORS * 16;

const AT = slotIndex([
  "a",
  "aStrideBytes",
  "b",
  "bStrideBytes",
  "out",
  "outStrideBytes",
  "rows",
  "columns",
  "depth",
  "accumulate",
  "aPanels",
  "bPanels",
  "packsA",
  "packsB",
]);

/** Code that multiplies one cache block. */
export function emitBlockProduct(transposition: Transposition, dtype: X64InputDType): Uint8Array {
  return emitKernel({
    body: (a) => {
      const pack = (operand: "a" | "b", transposes: boolean, width: number): void => {
        const isA = operand === "a";
        const done = a.label();
        a.cmp(mem(r.rdi, 8 * (isA ? AT.packsA : AT.packsB)), 0);
        a.j("e", done);
        loadSlot(a, PACK_ARGUMENTS.source, isA ? AT.a : AT.b);
        a.add(PACK_ARGUMENTS.source, r.rcx);
        loadSlot(a, PACK_ARGUMENTS.strideBytes, isA ? AT.aStrideBytes : AT.bStrideBytes);
        loadSlot(a, PACK_ARGUMENTS.panels, isA ? AT.aPanels : AT.bPanels);
        a.add(PACK_ARGUMENTS.panels, r.rcx);
        loadSlot(a, PACK_ARGUMENTS.lanes, isA ? AT.rows : AT.columns);
        loadSlot(a, PACK_ARGUMENTS.depth, AT.depth);
        (transposes ? emitTransposingPack : emitCopyingPack)(a, { width, dtype });
        a.bind(done);
      };
      pack("a", transposition !== "tn", TILE_ROWS);
      pack("b", transposition === "nt", TILE_COLUMNS);
      loadSlot(a, r.rax, AT.depth);
      emitWords(a, CORE_ARGUMENTS.words, r.rax, dtype);
      for (const name of ["aPanels", "bPanels", "out"] as const) {
        loadSlot(a, CORE_ARGUMENTS[name], AT[name]);
        a.add(CORE_ARGUMENTS[name], r.rcx);
      }
      for (const name of ["outStrideBytes", "rows", "columns"] as const) {
        loadSlot(a, CORE_ARGUMENTS[name], AT[name]);
      }
      emitVectorCore(a, dtype, mem(r.rdi, 8 * AT.accumulate));
    },
  });
}

/** null if x64 code can multiply here; otherwise the reason. */
export function x64MultiplierRefusal(
  _transposition: Transposition,
  dtype: string,
  context: ThreadContext,
): string | null {
  if (context.native === null) return "native code is off or impossible here";
  if (dtype === "f32") return null;
  if (dtype !== "bf16") return `no x64 code for ${dtype}`;
  const { avx512Bf16 } = context.native.features;
  return avx512Bf16 ? null : "this processor has no AVX512_BF16";
}

/** The block core in machine code, for one thread. `scratch` (by default the thread's) holds packed panels. */
export function createX64Multiplier(
  transposition: Transposition,
  dtype: X64InputDType,
  context: ThreadContext,
  scratch: Span = context.scratch,
): BlockMultiplier {
  const { native, memory, argumentBlock } = context;
  assert(native !== null, "x64 code needs a native runtime");
  const product = native.load(emitBlockProduct(transposition, dtype));
  const perWord = elementsPerWord(dtype);
  const elementBytes = 4 / perWord;
  const depthBlock = DEPTH_BLOCK_WORDS * perWord;
  const panelBytes = (lanes: number, width: number): number =>
    roundUp(lanes, width) * DEPTH_BLOCK_WORDS * 4 + PACK_SLACK_BYTES;
  const aPanels = scratch.byteOffset;
  const bPanels = aPanels + panelBytes(MAX_ROWS, TILE_ROWS);
  const scratchBytes = bPanels + panelBytes(SLICE_COLUMNS, TILE_COLUMNS) - aPanels;
  assert(scratchBytes <= scratch.byteLength, `x64 products need ${scratchBytes} bytes of scratch`);
  const slotsAt = argumentBlock.byteOffset / 8;
  const slotsAddress = memory.baseAddress + argumentBlock.byteOffset;
  const aPerRow = transposition === "tn" ? 1 : 0;
  const bPerColumn = transposition === "nt" ? 0 : 1;
  return (aOffset, aStride, bOffset, bStride, outOffset, outStride, m, n, k, accumulate) => {
    const slots = memory.f64;
    const aStrideBytes = aStride * elementBytes;
    const bStrideBytes = bStride * elementBytes;
    const aRowBytes = aPerRow === 1 ? elementBytes : aStrideBytes;
    const aDepthBytes = aPerRow === 1 ? aStrideBytes : elementBytes;
    const bColumnBytes = bPerColumn === 1 ? elementBytes : bStrideBytes;
    const bDepthBytes = bPerColumn === 1 ? bStrideBytes : elementBytes;
    slots[slotsAt + AT.aStrideBytes] = aStrideBytes;
    slots[slotsAt + AT.bStrideBytes] = bStrideBytes;
    slots[slotsAt + AT.outStrideBytes] = outStride * 4;
    slots[slotsAt + AT.aPanels] = aPanels;
    slots[slotsAt + AT.bPanels] = bPanels;
    slots[slotsAt + AT.packsB] = 1;
    if (k === 0 && !accumulate) zeroBlock(memory.f32, outOffset / 4, outStride, m, n);
    for (let d = 0; d < k; d += depthBlock) {
      slots[slotsAt + AT.depth] = Math.min(depthBlock, k - d);
      slots[slotsAt + AT.accumulate] = accumulate || d > 0 ? 1 : 0;
      for (let i = 0; i < m; i += MAX_ROWS) {
        slots[slotsAt + AT.a] = aOffset + i * aRowBytes + d * aDepthBytes;
        slots[slotsAt + AT.rows] = Math.min(MAX_ROWS, m - i);
        for (let j = 0; j < n; j += SLICE_COLUMNS) {
          slots[slotsAt + AT.b] = bOffset + j * bColumnBytes + d * bDepthBytes;
          slots[slotsAt + AT.columns] = Math.min(SLICE_COLUMNS, n - j);
          slots[slotsAt + AT.out] = outOffset + (i * outStride + j) * 4;
          slots[slotsAt + AT.packsA] = j === 0 ? 1 : 0;
          product.call(slotsAddress, 0, 0, memory.baseAddress);
        }
      }
    }
  };
}

function zeroBlock(
  out: Float32Array<SharedArrayBuffer>,
  first: number,
  stride: number,
  m: number,
  n: number,
): void {
  for (let row = 0; row < m; row++) {
    out.fill(0, first + row * stride, first + row * stride + n);
  }
}
