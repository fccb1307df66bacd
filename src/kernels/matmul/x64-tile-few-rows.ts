/**
 * @file Products of few rows with weights as they stand in memory (nt), on AMX tiles: what decoding
 * is made of.
 *
 *     out_MN (=|+=) Σ_k x_MK · w_NK        M at most 32, N at least 16
 *
 * The weights are the left operand here: 16 of their rows by 32 elements of depth are a tile as
 * they stand, so they are read once and never rearranged. The rows of x are the right one: a single
 * row, as one word below the other, is read where it stands as well; several are packed side by
 * side. So the tiles hold the output transposed. A product of two numbers does not ask which comes
 * first, and tiles sum each element alike (x64-tile-core.ts), so a row has the same bits here and
 * in a product of any size, but for the payload of a NaN where two meet.
 *
 * A last group of columns that would reach beyond them starts earlier and stores what is new.
 *
 * Weights are not asked for ahead of time: that costs a third in the second-level cache and gains
 * nothing beyond it. Windows of 48 and 64 columns are no faster (docs/log.md).
 */
import { divExact } from "../../base/integers.ts";
import type { Label, X64 } from "../../codegen/x64/assembler.ts";
import { emitKernel, loadSlot } from "../../codegen/x64/kernel-function.ts";
import {
  type Gp,
  k,
  type Memory,
  mem,
  merging,
  r,
  type Tile,
  tmm,
  zeroing,
  zmm,
} from "../../codegen/x64/operands.ts";
import { BLOCK_AT, type BlockSlot, emitPack, loadAddress } from "./x64-block.ts";
import { emitLowBits, emitTranspose16, type PanelFormat } from "./x64-pack.ts";
import { emitTileConfiguration, TILE_CONFIGURATION_WORDS, type TileUnit } from "./x64-tile-core.ts";

/** Rows that there is code for; others use the next and store their own alone. */
export const FEW_TILE_ROWS = [1, 16, 32] as const;
export type FewTileRows = (typeof FEW_TILE_ROWS)[number];

/** Columns of a group: rows of weights in a tile. */
export const GROUP_COLUMNS = 16;
/** Groups multiplied at once, so that one's products hide the latency of another's. */
type NumGroups = 1 | 2;
const WINDOW_COLUMNS = 2 * GROUP_COLUMNS;
/** Elements of depth in a tile: 16 words of two. */
const STEP_ELEMENTS = 32;
const STEP_WORDS = 16;
const LINE_BYTES = 64;
const LINE_WORDS = 8;

const LOCALS = [
  "x",
  "window",
  "outWindow",
  "columnsLeft",
  "oldColumns",
  "fullSteps",
  "stepsLeft",
  "stepsInBlock",
  "tailElements",
  "adds",
] as const;
type LocalName = (typeof LOCALS)[number];

const AT = {
  /** Those of both groups. */
  weights: [r.r8, r.r9],
  stride: r.r12,
  x: r.rsi,
  /** Bytes from one word of x to the next. */
  xStride: r.r13,
  /** Bytes from one column of sums to the next. */
  sumStride: r.rbp,
  buffer: r.r14,
  /** Bytes from one row in the buffer to the next: 64. */
  line: r.r15,
  steps: r.rbx,
  out: r.rcx,
} as const;

/** Sums of a group's columns with a tile of x. */
const sumOf = (group: number, tile: number): Tile => tmm(2 * group + tile);
const weightsOf = (group: number): Tile => tmm(4 + group);
const xOf = (tile: number): Tile => tmm(6 + tile);
/** Of the group that stores the last columns; of the elements left of the depth. */
const [NEW_COLUMNS, TAIL] = [k(1), k(2)];

interface Code {
  readonly a: X64;
  readonly tiles: TileUnit;
  /** Rows of x in a tile, and its tiles. */
  readonly rowsPerTile: 1 | 16;
  readonly numTiles: 1 | 2;
  readonly blockSteps: number;
  readonly local: Readonly<Record<LocalName, Memory>>;
  /** 64 bytes. */
  readonly tailOfX: Memory;
}

/** Code for products of `rows` rows by the tiles of `unit`, summed in blocks of depth. */
export function emitFewRowsOfTiles(
  unit: (a: X64) => TileUnit,
  rows: FewTileRows,
  depthBlockWords: number,
): Uint8Array {
  const configuration = LOCALS.length + LINE_WORDS;
  return emitKernel({
    numLocals: configuration + TILE_CONFIGURATION_WORDS,
    body: (a, localAt) => {
      const places = LOCALS.map((name, index) => [name, localAt(index)]);
      const local = Object.fromEntries(places) as Record<LocalName, Memory>;
      const code: Code = {
        a,
        tiles: unit(a),
        rowsPerTile: rows === 1 ? 1 : 16,
        numTiles: rows === 32 ? 2 : 1,
        blockSteps: divExact(depthBlockWords, STEP_WORDS),
        local,
        tailOfX: localAt(LOCALS.length),
      };
      const { columnsLeft, window, outWindow } = local;
      emitOperands(code, localAt(configuration));
      const [next, one, end] = [a.label(), a.label(), a.label()];
      a.bind(next);
      a.cmp(columnsLeft, GROUP_COLUMNS);
      a.j("le", one);
      emitWindow(code, 2);
      a.sub(columnsLeft, WINDOW_COLUMNS);
      a.j("le", end);
      a.imul(r.rax, AT.stride, WINDOW_COLUMNS);
      a.add(window, r.rax);
      a.add(outWindow, WINDOW_COLUMNS * 4);
      a.jmp(next);
      a.bind(one);
      emitWindow(code, 1);
      a.bind(end);
      code.tiles.tilerelease();
    },
  });
}

/** x packed if it is to be, strides, counts, the first window and the tiles' shapes. */
function emitOperands(code: Code, configuration: Memory): void {
  const { a, tiles, rowsPerTile, numTiles, local } = code;
  const load = (to: Gp, name: BlockSlot): void => loadSlot(a, to, BLOCK_AT[name]);
  const isPacked = rowsPerTile > 1;
  const width = rowsPerTile * numTiles;
  if (isPacked) {
    const operand = { dtype: "bf16", source: "bf16" } as const;
    const format: PanelFormat = { width, ...operand, depthUnit: 16, layout: "words" };
    emitPack(a, "a", format, true);
  }
  for (const [name, slot] of [
    ["x", isPacked ? "aPanels" : "a"],
    ["window", "b"],
    ["outWindow", "out"],
  ] as const) {
    loadAddress(a, r.rax, slot);
    a.mov(local[name], r.rax);
  }
  a.mov(AT.xStride, isPacked ? 4 * width : 4);
  a.mov(AT.sumStride, 4 * rowsPerTile);
  a.mov(AT.line, LINE_BYTES);
  loadAddress(a, AT.buffer, "buffer");
  load(AT.stride, "bStrideBytes");
  load(r.rax, "columns");
  a.mov(local.columnsLeft, r.rax);
  load(AT.steps, "depth");
  a.mov(r.rax, AT.steps);
  a.shr(r.rax, Math.log2(STEP_ELEMENTS));
  a.mov(local.fullSteps, r.rax);
  a.and(AT.steps, STEP_ELEMENTS - 1);
  a.mov(local.tailElements, AT.steps);
  emitLowBits(a, r.rax, AT.steps);
  a.kmovd(TAIL, r.rax);
  emitTileConfiguration(a, tiles, configuration, 4 * rowsPerTile);
}

/** All depth of one or two groups of columns, block after block. */
function emitWindow(code: Code, groups: NumGroups): void {
  const { a, blockSteps, local } = code;
  const { fullSteps, stepsLeft, stepsInBlock, tailElements, adds } = local;
  const [block, store, end] = [a.label(), a.label(), a.label()];
  emitPlaceGroups(code, groups);
  a.mov(AT.x, local.x);
  a.mov(r.rax, fullSteps);
  a.mov(stepsLeft, r.rax);
  loadSlot(a, r.rax, BLOCK_AT.accumulate);
  a.mov(adds, r.rax);
  a.bind(block);
  a.mov(AT.steps, blockSteps);
  a.mov(r.rax, stepsLeft);
  a.cmp(r.rax, AT.steps);
  a.cmov("l", AT.steps, r.rax);
  a.sub(stepsLeft, AT.steps);
  a.mov(stepsInBlock, AT.steps);
  emitSteps(code, groups);
  // A block that is not full takes what is left of the depth, and is the last.
  a.cmp(stepsInBlock, blockSteps);
  a.j("e", store);
  a.cmp(tailElements, 0);
  a.j("e", store);
  emitTail(code, groups);
  a.bind(store);
  emitStore(code, groups);
  a.mov(adds, 1);
  a.cmp(stepsInBlock, blockSteps);
  a.j("ne", end);
  a.mov(r.rax, stepsLeft);
  a.or(r.rax, tailElements);
  a.cmp(r.rax, 0);
  a.j("ne", block);
  a.bind(end);
}

/** Pointers to the groups' weights; the last moves back by the columns that are missing. */
function emitPlaceGroups({ a, local }: Code, groups: NumGroups): void {
  const { window, columnsLeft, oldColumns } = local;
  const old = r.rax;
  a.mov(AT.weights[0], window);
  if (groups === 2) {
    a.imul(AT.weights[1], AT.stride, GROUP_COLUMNS);
    a.add(AT.weights[1], AT.weights[0]);
  }
  a.mov(old, GROUP_COLUMNS * groups);
  a.mov(AT.steps, 0);
  a.sub(old, columnsLeft);
  a.cmov("l", old, AT.steps);
  a.mov(oldColumns, old);
  a.mov(AT.steps, old);
  a.imul(old, AT.stride);
  a.sub(AT.weights[groups - 1]!, old);
  emitLowBits(a, r.rax, AT.steps);
  a.xor(r.rax, -1);
  a.kmovw(NEW_COLUMNS, r.rax);
}

function emitSteps({ a, tiles, rowsPerTile, numTiles }: Code, groups: NumGroups): void {
  for (let group = 0; group < groups; group++) {
    for (let tile = 0; tile < numTiles; tile++) tiles.tilezero(sumOf(group, tile));
  }
  a.countdown(AT.steps, 1, () => {
    for (let tile = 0; tile < numTiles; tile++) {
      tiles.tileloadd(xOf(tile), mem(AT.x, tile * LINE_BYTES, AT.xStride, 1));
    }
    a.add(AT.x, STEP_WORDS * 4 * rowsPerTile * numTiles);
    for (let group = 0; group < groups; group++) {
      const weights = AT.weights[group]!;
      tiles.tileloadd(weightsOf(group), mem(weights, 0, AT.stride, 1));
      a.add(weights, LINE_BYTES);
      for (let tile = 0; tile < numTiles; tile++) {
        tiles.tdpbf16ps(sumOf(group, tile), weightsOf(group), xOf(tile));
      }
    }
  });
}

/** What is left of the depth, less than a tile: copied first, with zeros behind. */
function emitTail({ a, tiles, rowsPerTile, numTiles, tailOfX }: Code, groups: NumGroups): void {
  let x = mem(AT.x);
  if (rowsPerTile === 1) {
    a.v("vmovdqu16", [zmm(0), x], zeroing(TAIL));
    a.v("vmovups", [tailOfX, zmm(0)]);
    x = tailOfX;
  }
  for (let tile = 0; tile < numTiles; tile++) {
    const at = mem(x.base, x.displacement + tile * LINE_BYTES, AT.xStride, 1);
    tiles.tileloadd(xOf(tile), at);
  }
  for (let group = 0; group < groups; group++) {
    const row = AT.weights[group]!;
    for (let line = 0; line < GROUP_COLUMNS; line++) {
      a.v("vmovdqu16", [zmm(0), mem(row)], zeroing(TAIL));
      a.v("vmovups", [mem(AT.buffer, line * LINE_BYTES), zmm(0)]);
      if (line + 1 < GROUP_COLUMNS) a.add(row, AT.stride);
    }
    tiles.tileloadd(weightsOf(group), mem(AT.buffer, 0, AT.line, 1));
    for (let tile = 0; tile < numTiles; tile++) {
      tiles.tdpbf16ps(sumOf(group, tile), weightsOf(group), xOf(tile));
    }
  }
}

/** Sums to the output, by way of the buffer. */
function emitStore(code: Code, groups: NumGroups): void {
  const { a, tiles, rowsPerTile, numTiles, local } = code;
  const sumBytes = rowsPerTile * LINE_BYTES;
  const bufferOf = (group: number, tile: number): number => (2 * group + tile) * sumBytes;
  for (let group = 0; group < groups; group++) {
    for (let tile = 0; tile < numTiles; tile++) {
      const to = mem(AT.buffer, bufferOf(group, tile), AT.sumStride, 1);
      tiles.tilestored(to, sumOf(group, tile));
    }
  }
  for (let group = 0; group < groups; group++) {
    const isLast = group === groups - 1;
    const done = a.label();
    a.mov(AT.out, local.outWindow);
    a.add(AT.out, group * LINE_BYTES);
    if (isLast) {
      a.mov(r.rax, local.oldColumns);
      a.shl(r.rax, 2);
      a.sub(AT.out, r.rax);
    }
    for (let tile = 0; tile < numTiles; tile++) {
      for (let row = 0; row < rowsPerTile; row++) {
        a.v("vmovups", [zmm(row), mem(AT.buffer, bufferOf(group, tile) + row * LINE_BYTES)]);
      }
      if (rowsPerTile > 1) emitTranspose16(a);
      emitStoreRows(code, tile * rowsPerTile, isLast, done);
    }
    a.bind(done);
  }
}

/**
 * The rows in zmm0.. to the output, as many as exist; of the last group only the columns that the
 * one before has not stored.
 */
function emitStoreRows(code: Code, firstRow: number, isLast: boolean, done: Label): void {
  const { a, rowsPerTile, local } = code;
  const [rows, stride] = [AT.steps, r.rax];
  const mask = isLast ? merging(NEW_COLUMNS) : null;
  loadSlot(a, rows, BLOCK_AT.rows);
  loadSlot(a, stride, BLOCK_AT.outStrideBytes);
  for (let row = 0; row < rowsPerTile; row++) {
    const plain = a.label();
    if (firstRow + row > 0) {
      a.cmp(rows, firstRow + row);
      a.j("le", done);
    }
    a.cmp(local.adds, 0);
    a.j("e", plain);
    a.v("vaddps", [zmm(row), zmm(row), mem(AT.out)], mask);
    a.bind(plain);
    a.v("vmovups", [mem(AT.out), zmm(row)], mask);
    a.add(AT.out, stride);
  }
}
