/**
 * @file A thread's block product, loaded and ready: its argument block, its scratch, one call.
 *
 * Native addresses are sound here because the memory never moves and is never freed.
 */
import { assert } from "../../base/errors.ts";
import { roundUp } from "../../base/integers.ts";
import type { CpuMemory } from "../../device/cpu/memory.ts";
import type { Span, ThreadContext } from "../../device/program.ts";
import type { Transposition } from "./block-multiplier.ts";
import { emitBlockProduct } from "./x64-block.ts";
import type { X64Core } from "./x64-core.ts";
import { elementsPerWord, PACK_SLACK_BYTES, sourceBytes } from "./x64-pack.ts";
import { TILE_BUFFER_BYTES } from "./x64-tile-core.ts";

/** Columns whose packed B stays in the second-level cache beside the panels of A passing by. */
export const SLICE_COLUMNS = 256;

export interface PreparedBlocks {
  readonly memory: CpuMemory;
  /** The arguments of `run`, at `BLOCK_AT`. */
  readonly slots: Float64Array;
  /** Multiply the block that `slots` describe. */
  run(): void;
  /** Elements of depth summed at once. */
  readonly depthBlock: number;
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
  const panelBytes = (lanes: number, width: number): number =>
    roundUp(roundUp(lanes, width) * core.depthBlockWords * 4 + PACK_SLACK_BYTES, 4096);
  const buffer = scratch.byteOffset;
  const aPanels = buffer + TILE_BUFFER_BYTES;
  const bPanels = aPanels + panelBytes(core.maxRows, core.aFormat.width);
  const end = bPanels + panelBytes(SLICE_COLUMNS, core.bFormat.width);
  const restBytes = buffer + scratch.byteLength - end;
  assert(restBytes >= 0, `x64 products need ${end - buffer} bytes of scratch`);
  const run = loadCode(emitBlockProduct(transposition, core), context);
  const numSlots = argumentBlock.byteLength / 8;
  return {
    memory,
    // Shared memory grows in place: this view never goes stale.
    slots: new Float64Array(memory.wasm.buffer, argumentBlock.byteOffset, numSlots),
    run,
    depthBlock: core.depthBlockWords * perWord,
    elementBytes: [sourceBytes(core.aFormat.source), sourceBytes(core.bFormat.source)],
    aPanels,
    bPanels,
    buffer,
    rest: { byteOffset: end, byteLength: restBytes },
  };
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
