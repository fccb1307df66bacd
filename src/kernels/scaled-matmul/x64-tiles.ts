/**
 * @file Products of scaled operands on AMX tiles: the loops around x64-tile-rows.ts, for one
 * thread.
 *
 * For each part of the depth, and as many columns as half of the second-level cache has room for,
 * B is packed once; then all rows of A pass.
 */
import { assert } from "../../base/errors.ts";
import { floorDiv, roundUp } from "../../base/integers.ts";
import type { X64 } from "../../codegen/x64/assembler.ts";
import type { ThreadContext } from "../../device/program.ts";
import type { Transposition } from "../matmul/block-multiplier.ts";
import { evenRows, zeroBlock } from "../matmul/x64-blocks.ts";
import { PACK_SLACK_BYTES } from "../matmul/x64-pack.ts";
import type { TileUnit } from "../matmul/x64-tile-core.ts";
import type { ProductFormat } from "./contract.ts";
import type { ScaledBlock, ScaledBlockMultiplier, ScaledPlace } from "./scaled-block.ts";
import { PANEL_LANES, UNIT_DEPTH } from "./x64-code-pack.ts";
import { CODE_TABLE_BYTES, codeTables } from "./x64-code-tables.ts";
import {
  cutDepth,
  isDepthAlongRows,
  type Lanes,
  PIECES_MAX,
  type Pieces,
  placeColumnScales,
  placeRowScales,
} from "./x64-scales.ts";
import { emitMultiplyRows, emitPackB } from "./x64-tile-rows.ts";
import { TILES_AT as AT, TILES_BUFFER_BYTES, TILES_SCALES_BYTES } from "./x64-tile-slots.ts";

/**
 * Depth of a part: then a panel of A stays in the first-level cache while B passes by. At twice the
 * depth the output passes half as often, but products are slower by 5 to 18 %. What is little
 * deeper is one part all the same.
 */
const DEPTH_BLOCK = 512;
const DEPTH_WHOLE = 768;
/** Of pieces that are not to be cut. */
const DEPTH_MAX = 2048;
/** Of A's panels that are packed together where a line of memory has lanes of several. */
const A_ELEMENTS = 2 * PANEL_LANES * DEPTH_MAX;
/** Of packed B. */
const SLICE_BYTES = 2 ** 20;
const SLICE_COLUMNS_MAX = 1024;
/** Rows whose scales there is room for. */
const ROWS_MAX = 4096;

/** Places in the thread's scratch, as byte offsets. */
interface Places {
  readonly buffer: number;
  readonly aPanels: number;
  readonly bPanels: number;
  readonly aTables: number;
  readonly bTables: number;
  readonly aScales: number;
  readonly bScales: number;
  /** Scales of A that do not stand evenly. */
  readonly scalesOfA: number;
}

/** Every place begins at a multiple of it. */
const PLACE_BYTES = TILES_SCALES_BYTES;

function layOut({ scratch }: ThreadContext): Places {
  let next = scratch.byteOffset;
  const take = (bytes: number): number => {
    const offset = roundUp(next, PLACE_BYTES);
    next = offset + bytes;
    return offset;
  };
  const places = {
    buffer: take(TILES_BUFFER_BYTES),
    aPanels: take(A_ELEMENTS * 2 + PACK_SLACK_BYTES),
    bPanels: take(SLICE_BYTES + PACK_SLACK_BYTES),
    aTables: take(CODE_TABLE_BYTES),
    bTables: take(CODE_TABLE_BYTES),
    aScales: take(TILES_SCALES_BYTES),
    bScales: take(SLICE_COLUMNS_MAX * PIECES_MAX * 4),
    scalesOfA: take(ROWS_MAX * PIECES_MAX * 4),
  };
  const bytes = next - scratch.byteOffset;
  assert(bytes <= scratch.byteLength, `scaled products on tiles need ${bytes} bytes of scratch`);
  return places;
}

/** A thread's kernels, loaded and ready: their arguments, then one call of both. */
interface PreparedTiles {
  readonly slots: Float64Array;
  /** Slots and scratch belong to whatever runs on this thread: they are written for each block. */
  begin(block: ScaledBlock): void;
  /** The rows of A to multiply, and the columns of B. */
  placeA(a: ScaledPlace, rows: Span, part: Pieces): void;
  placeB(b: ScaledPlace, columns: Span, part: Pieces): void;
  run(): void;
}

/** Neighbouring rows or columns. */
type Span = Omit<Lanes, "width">;

function prepareTiles(
  [aFormat, bFormat]: readonly [a: ProductFormat, b: ProductFormat],
  transposition: Transposition,
  unit: ((a: X64) => TileUnit) | null,
  context: ThreadContext,
): PreparedTiles {
  const { native, memory, argumentBlock } = context;
  assert(native !== null, "x64 code needs a native runtime");
  const places = layOut(context);
  const packB = native.load(emitPackB(transposition));
  const multiplyRows = native.load(emitMultiplyRows(transposition, unit));
  const numSlots = argumentBlock.byteLength / 8;
  // Shared memory grows in place: this view never goes stale.
  const slots = new Float64Array(memory.wasm.buffer, argumentBlock.byteOffset, numSlots);
  const { baseAddress } = memory;
  const slotsAddress = baseAddress + argumentBlock.byteOffset;
  const fixedSlots = (Object.entries(places) as [keyof Places, number][]).map(
    ([name, offset]) => [AT[name], baseAddress + offset] as const,
  );
  const aTables = codeTables(aFormat, "row");
  const bTables = codeTables(bFormat, transposition === "nt" ? "row" : "lanes");
  const aAlongRows = isDepthAlongRows("a", transposition);
  const bAlongRows = isDepthAlongRows("b", transposition);
  return {
    slots,
    begin({ a, b, outRowStride, pieceDepth }) {
      copyWords(memory.i32, places.aTables / 4, aTables);
      copyWords(memory.i32, places.bTables / 4, bTables);
      for (const [slot, address] of fixedSlots) slots[slot] = address;
      slots[AT.aStrideBytes] = a.rowStride;
      slots[AT.bStrideBytes] = b.rowStride;
      slots[AT.outStrideBytes] = 4 * outRowStride;
      slots[AT.pieceWords] = roundUp(Math.min(pieceDepth, DEPTH_MAX), UNIT_DEPTH) / 2;
    },
    placeA(a, rows, part) {
      const room = places.scalesOfA / 4;
      const scales = placeRowScales(memory.f32, room, a, aAlongRows, rows, part);
      slots[AT.scalesOfA] = baseAddress + 4 * scales.first;
      slots[AT.rowScaleBytes] = 4 * scales.laneStep;
      slots[AT.aPieceScaleBytes] = 4 * scales.pieceStep;
      slots[AT.a] = baseAddress + codeAt(a, aAlongRows, rows.first, part.first);
      slots[AT.rows] = rows.count;
    },
    placeB(b, columns, part) {
      const lanes = { ...columns, width: PANEL_LANES };
      const room = places.bScales / 4;
      const scales = placeColumnScales(memory.f32, room, b, bAlongRows, lanes, part);
      slots[AT.bScales] = baseAddress + 4 * scales.first;
      slots[AT.panelScaleBytes] = 4 * scales.panelStep;
      slots[AT.bPieceScaleBytes] = 4 * scales.pieceStep;
      slots[AT.sharesColumnScales] = scales.isShared ? 1 : 0;
      slots[AT.b] = baseAddress + codeAt(b, bAlongRows, columns.first, part.first);
      slots[AT.columns] = columns.count;
    },
    run() {
      packB.call(slotsAddress, 0, 0, baseAddress);
      multiplyRows.call(slotsAddress, 0, 0, baseAddress);
    },
  };
}

/** Byte offset of the code of a lane and depth. */
function codeAt(place: ScaledPlace, alongRows: boolean, lane: number, depth: number): number {
  const [row, column] = alongRows ? [lane, depth] : [depth, lane];
  return place.codesOffset + row * place.rowStride + column;
}

/** A short copy, in a plain loop: `set` into shared memory takes microseconds. */
function copyWords(to: Int32Array, at: number, words: Int32Array): void {
  for (let i = 0; i < words.length; i++) to[at + i] = words[i]!;
}

/** The multiplier of one thread, with the processor's tiles or those of `unit`. */
export function createScaledTileMultiplier(
  formats: readonly [a: ProductFormat, b: ProductFormat],
  transposition: Transposition,
  unit: ((a: X64) => TileUnit) | null,
  context: ThreadContext,
): ScaledBlockMultiplier {
  const tiles = prepareTiles(formats, transposition, unit, context);
  const { slots } = tiles;
  const { memory } = context;
  return (block) => {
    const { a, b, outOffset, outRowStride, m, n, k, pieceDepth, accumulate } = block;
    if (k === 0 && !accumulate) zeroBlock(memory.f32, outOffset / 4, outRowStride, m, n);
    tiles.begin(block);
    const isWhole = k <= DEPTH_WHOLE || pieceDepth > DEPTH_BLOCK;
    const depthBlock = isWhole ? DEPTH_MAX : DEPTH_BLOCK;
    for (const part of cutDepth({ k, pieceDepth, depthBlock, unit: UNIT_DEPTH })) {
      const depth = part.end - part.first;
      const words = roundUp(depth, UNIT_DEPTH) / 2;
      slots[AT.depth] = depth;
      slots[AT.words] = words;
      slots[AT.rowsAtOnce] =
        transposition === "tn" ? panelsIn(A_ELEMENTS, words) * PANEL_LANES : PANEL_LANES;
      slots[AT.pieces] = part.count;
      slots[AT.accumulate] = accumulate || part.first > 0 ? 1 : 0;
      const slice = evenRows(n, sliceColumns(words), PANEL_LANES);
      for (let i = 0; i < m; i += ROWS_MAX) {
        tiles.placeA(a, { first: i, count: Math.min(ROWS_MAX, m - i) }, part);
        for (let j = 0; j < n; j += slice) {
          tiles.placeB(b, { first: j, count: Math.min(slice, n - j) }, part);
          slots[AT.out] = memory.baseAddress + outOffset + 4 * (i * outRowStride + j);
          tiles.run();
        }
      }
    }
  };
}

/** Columns of B that are packed at once, for so many words of depth. */
function sliceColumns(words: number): number {
  return Math.min(panelsIn(SLICE_BYTES / 2, words) * PANEL_LANES, SLICE_COLUMNS_MAX);
}

/** Panels of so many words of depth that `elements` of room hold. */
function panelsIn(elements: number, words: number): number {
  return floorDiv(elements, words * 2 * PANEL_LANES);
}
