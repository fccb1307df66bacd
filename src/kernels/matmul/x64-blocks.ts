/**
 * @file A thread's block product, loaded and ready: its argument block, its scratch, one call.
 *
 * Native addresses are sound here because the memory never moves and is never freed.
 */
import { assert } from "../../base/errors.ts";
import { ceilDiv, floorDiv, roundUp } from "../../base/integers.ts";
import type { CpuMemory } from "../../device/cpu/memory.ts";
import type { Span, ThreadContext } from "../../device/program.ts";
import type { Transposition } from "./block-multiplier.ts";
import { emitBlockProduct } from "./x64-block.ts";
import type { X64Core } from "./x64-core.ts";
import { elementsPerWord, PACK_SLACK_BYTES, sourceBytes } from "./x64-pack.ts";
import { TILE_BUFFER_BYTES } from "./x64-tile-core.ts";

/** Of columns whose packed B is kept at once, however shallow; a multiple of every panel's. */
export const SLICE_COLUMNS_MAX = 1024;

export interface PreparedBlocks {
  readonly memory: CpuMemory;
  /** The arguments of `run`, at `BLOCK_AT`. */
  readonly slots: Float64Array;
  /** Multiply the block that `slots` describe. */
  run(): void;
  /** Elements of depth summed at once. */
  readonly depthBlock: number;
  /** Columns whose packed B is kept at once, for so many elements of depth. */
  readonly sliceColumns: (depth: number) => number;
  /** Of a and of b. */
  readonly elementBytes: readonly [a: number, b: number];
  /** Byte offsets of this thread's panels, of the core's buffer, and of the scratch behind them. */
  readonly aPanels: number;
  readonly bPanels: number;
  readonly buffer: number;
  readonly rest: Span;
}

/** Load a core's block product and lay out its scratch. */
export function prepareBlocks(
  core: X64Core,
  transposition: Transposition,
  context: ThreadContext,
  scratch: Span,
): PreparedBlocks {
  const { native, memory, argumentBlock } = context;
  assert(native !== null, "x64 code needs a native runtime");
  const perWord = elementsPerWord(core.aFormat.dtype);
  const { aFormat, bFormat, depthBlockWords, sliceBytes } = core;
  const roomFor = (bytes: number): number => roundUp(bytes + PACK_SLACK_BYTES, 4096);
  const buffer = scratch.byteOffset;
  // B's panels first: they are read most, and the scratch begins with a huge page.
  const bPanels = buffer + TILE_BUFFER_BYTES;
  const aPanels = bPanels + roomFor(sliceBytes);
  const end = aPanels + roomFor(roundUp(core.maxRows, aFormat.width) * depthBlockWords * 4);
  const restBytes = buffer + scratch.byteLength - end;
  assert(restBytes >= 0, `x64 products need ${end - buffer} bytes of scratch`);
  const run = loadCode(emitBlockProduct(transposition, core), context);
  const numSlots = argumentBlock.byteLength / 8;
  return {
    memory,
    // Shared memory grows in place: this view never goes stale.
    slots: new Float64Array(memory.wasm.buffer, argumentBlock.byteOffset, numSlots),
    run,
    depthBlock: depthBlockWords * perWord,
    sliceColumns: (depth) => {
      const words = roundUp(ceilDiv(depth, perWord), bFormat.depthUnit);
      const panels = floorDiv(sliceBytes, words * bFormat.width * 4);
      return Math.min(panels * bFormat.width, SLICE_COLUMNS_MAX);
    },
    elementBytes: [sourceBytes(aFormat.source), sourceBytes(bFormat.source)],
    aPanels,
    bPanels,
    buffer,
    rest: { byteOffset: end, byteLength: restBytes },
  };
}

/** Rows of even blocks of `total`, multiples of a panel's and at most `most`. */
export function evenRows(total: number, most: number, panelRows: number): number {
  return roundUp(ceilDiv(total, Math.max(1, ceilDiv(total, most))), panelRows);
}

/** A call of `code` over the thread's argument block. */
export function loadCode(
  code: Uint8Array,
  { native, memory, argumentBlock }: ThreadContext,
): () => void {
  assert(native !== null, "x64 code needs a native runtime");
  const kernel = native.load(code);
  const { baseAddress } = memory;
  const slotsAddress = baseAddress + argumentBlock.byteOffset;
  return () => kernel.call(slotsAddress, 0, 0, baseAddress);
}

/** Zero an m × n block of the output. */
export function zeroBlock(
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
