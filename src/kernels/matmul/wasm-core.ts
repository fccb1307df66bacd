/**
 * @file The WebAssembly functions of a matrix product: packing operands into panels, and the
 * product of panels.
 *
 *   panel of A    [k][6]   six rows of A side by side, k after k
 *   panel of B    [k][8]   eight columns of B
 *   tile          6×8 outputs in twelve accumulators; an output is one chain of k products
 *
 * bf16 widens to f32 while it is packed (exactly). A ragged last panel repeats its last row or
 * column, so that nothing beyond the operand is read; the repeated results are not stored.
 */
import { type Local, WasmFunction } from "../../codegen/wasm/function.ts";
import { assembleModule } from "../../codegen/wasm/module.ts";

export const PANEL_ROWS = 6;
export const PANEL_COLUMNS = 8;
const LANES = 4;
const K_UNROLL = 4;

export type WasmInputDType = "f32" | "bf16";
type Lanes = readonly [number, number, number, number];

export interface WasmCoreExports {
  /** (source, strideBytes, panels, count, k): source is count × k, k contiguous. */
  readonly packRowsA: Packer;
  readonly packRowsB: Packer;
  /** (source, strideBytes, panels, count, k): source is k × count, count contiguous. */
  readonly packColumnsA: Packer;
  readonly packColumnsB: Packer;
  /**
   * (a panels, b panels, out, outStrideBytes, m, n, k, accumulate): n is rounded up to whole
   * panels.
   */
  readonly multiply: (...args: number[]) => void;
  /** (tile, out, outStrideBytes, m, columns, accumulate): copies the first columns of rows of 8. */
  readonly storeEdge: (...args: number[]) => void;
}
type Packer = (
  source: number,
  strideBytes: number,
  panels: number,
  count: number,
  k: number,
) => void;

/** The module's bytes. */
export function assembleMatmulCore(options: {
  readonly dtype: WasmInputDType;
  readonly relaxedSimd: boolean;
}): Uint8Array<ArrayBuffer> {
  const { dtype, relaxedSimd } = options;
  return assembleModule({
    packRowsA: packRows(PANEL_ROWS, dtype),
    packRowsB: packRows(PANEL_COLUMNS, dtype),
    packColumnsA: packColumns(PANEL_ROWS, dtype),
    packColumnsB: packColumns(PANEL_COLUMNS, dtype),
    multiply: multiplyPanels(relaxedSimd),
    storeEdge: storeEdge(),
  });
}

const bytesOf = (dtype: WasmInputDType): number => (dtype === "f32" ? 4 : 2);

/** Loads four elements at the address on the stack, as f32. */
function loadFour(w: WasmFunction, dtype: WasmInputDType, offset: number): void {
  if (dtype === "f32") w.memory("v128.load", offset);
  else w.memory("v128.load16x4_u", offset).i32Const(16).op("i32x4.shl");
}

/** Loads the bits of one element at the address on the stack, as f32. */
function loadOne(w: WasmFunction, dtype: WasmInputDType, offset = 0): void {
  if (dtype === "f32") w.memory("i32.load", offset);
  else w.memory("i32.load16_u", offset).i32Const(16).op("i32.shl");
}

/** local ← min(limit − 1, value), for a ragged panel. */
function clampBelow(w: WasmFunction, local: Local, value: number, limit: Local): void {
  w.i32Const(value).get(limit).i32Const(1).op("i32.sub");
  w.i32Const(value).get(limit).op("i32.lt_s").op("select").set(local);
}

/** Panels of `width` rows whose elements lie along k: four k at a time are turned in registers. */
function packRows(width: number, dtype: WasmInputDType): WasmFunction {
  const w = new WasmFunction(["i32", "i32", "i32", "i32", "i32"]);
  const [source, stride, panels, count, k] = [0, 1, 2, 3, 4];
  const left = w.local("i32");
  const pointers = Array.from({ length: width }, () => w.local("i32"));
  const vectors = Array.from({ length: LANES }, () => w.local("v128"));
  const bytes = bytesOf(dtype);
  w.get(count).i32Const(0).op("i32.gt_s");
  w.when(() =>
    w.loop(() => {
      for (const [index, pointer] of pointers.entries()) {
        clampBelow(w, pointer, index, count);
        w.get(pointer).get(stride).op("i32.mul").get(source).op("i32.add").set(pointer);
      }
      w.get(k).set(left);
      w.countdown(left, LANES, () => {
        turnFour({ w, dtype, pointers, vectors, panels });
        for (const pointer of pointers) w.addConst(pointer, LANES * bytes);
        w.addConst(panels, LANES * width * 4);
      });
      w.countdown(left, 1, () => {
        for (const [index, pointer] of pointers.entries()) {
          w.get(panels).get(pointer);
          loadOne(w, dtype);
          w.memory("i32.store", index * 4).addConst(pointer, bytes);
        }
        w.addConst(panels, width * 4);
      });
      w.get(stride).i32Const(width).op("i32.mul").get(source).op("i32.add").set(source);
      w.addConst(count, -width);
      w.get(count).i32Const(0).op("i32.gt_s").brIf(0);
    }),
  );
  return w;
}

interface Turn {
  readonly w: WasmFunction;
  readonly dtype: WasmInputDType;
  readonly pointers: readonly Local[];
  readonly vectors: readonly Local[];
  readonly panels: Local;
}

/** Four k of all rows of a panel: [row][k] → [k][row], four rows at a time, then two. */
function turnFour({ w, dtype, pointers, vectors, panels }: Turn): void {
  const rowBytes = pointers.length * 4;
  for (let first = 0; first < pointers.length; first += LANES) {
    const rows = pointers.slice(first, first + LANES);
    rows.forEach((pointer, index) => {
      w.get(pointer);
      loadFour(w, dtype, 0);
      w.set(vectors[index]!);
    });
    const [a, b, c, d] = vectors as [Local, Local, Local, Local];
    const low: Lanes = [0, 4, 1, 5];
    const high: Lanes = [2, 6, 3, 7];
    if (rows.length === 2) {
      for (const [pair, lanes] of [low, high].entries()) {
        w.get(a).get(b).shuffle32(lanes).set(c);
        for (const half of [0, 1]) {
          const offset = (2 * pair + half) * rowBytes + first * 4;
          w.get(panels).get(c).laneMemory("v128.store64_lane", half, offset);
        }
      }
      continue;
    }
    for (const [pair, lanes] of [low, high].entries()) {
      for (const [half, order] of (
        [
          [0, 1, 4, 5],
          [2, 3, 6, 7],
        ] as const
      ).entries()) {
        w.get(panels).get(a).get(b).shuffle32(lanes).get(c).get(d).shuffle32(lanes);
        w.shuffle32(order).memory("v128.store", (2 * pair + half) * rowBytes + first * 4);
      }
    }
  }
}

/** Panels of `width` columns that lie side by side in memory: copied k after k. */
function packColumns(width: number, dtype: WasmInputDType): WasmFunction {
  const w = new WasmFunction(["i32", "i32", "i32", "i32", "i32"]);
  const [source, stride, panels, count, k] = [0, 1, 2, 3, 4];
  const left = w.local("i32");
  const pointer = w.local("i32");
  const column = w.local("i32");
  const bytes = bytesOf(dtype);
  const copy = (body: () => void): void => {
    w.get(source).set(pointer).get(k).set(left);
    w.countdown(left, 1, () => {
      body();
      w.addLocal(pointer, stride).addConst(panels, width * 4);
    });
    w.addConst(source, width * bytes);
  };
  w.countdown(count, width, () =>
    copy(() => {
      for (let first = 0; first + LANES <= width; first += LANES) {
        w.get(panels).get(pointer);
        loadFour(w, dtype, first * bytes);
        w.memory("v128.store", first * 4);
      }
      for (let index = width - (width % LANES); index < width; index++) {
        w.get(panels).get(pointer);
        loadOne(w, dtype, index * bytes);
        w.memory("i32.store", index * 4);
      }
    }),
  );
  w.get(count).i32Const(0).op("i32.gt_s");
  w.when(() =>
    copy(() => {
      for (let index = 0; index < width; index++) {
        clampBelow(w, column, index, count);
        w.get(panels).get(column).i32Const(bytes).op("i32.mul").get(pointer).op("i32.add");
        loadOne(w, dtype);
        w.memory("i32.store", index * 4);
      }
    }),
  );
  return w;
}

const TILE_VECTORS = PANEL_COLUMNS / LANES;

/** The locals of the product's inner loop. */
interface Tile {
  readonly w: WasmFunction;
  readonly relaxedSimd: boolean;
  readonly aAt: Local;
  readonly bAt: Local;
  readonly sums: readonly Local[];
  readonly bVectors: readonly Local[];
  readonly aSplat: Local;
}

/** sums += a · b for the k that stands `index` after the pointers. */
function multiplyStep(tile: Tile, index: number): void {
  const { w, relaxedSimd, aAt, bAt, sums, bVectors, aSplat } = tile;
  for (const [vector, local] of bVectors.entries()) {
    w.get(bAt)
      .memory("v128.load", (index * TILE_VECTORS + vector) * 16)
      .set(local);
  }
  for (let row = 0; row < PANEL_ROWS; row++) {
    w.get(aAt)
      .memory("v128.load32_splat", (index * PANEL_ROWS + row) * 4)
      .set(aSplat);
    for (const [vector, local] of bVectors.entries()) {
      const sum = sums[row * TILE_VECTORS + vector]!;
      w.get(aSplat).get(local);
      if (relaxedSimd) w.get(sum).op("f32x4.relaxed_madd").set(sum);
      else w.op("f32x4.mul").get(sum).op("f32x4.add").set(sum);
    }
  }
}

function multiplyPanels(relaxedSimd: boolean): WasmFunction {
  const w = new WasmFunction(["i32", "i32", "i32", "i32", "i32", "i32", "i32", "i32"]);
  const [a, b, out, outStride, m, n, k, accumulate] = [0, 1, 2, 3, 4, 5, 6, 7];
  const i32 = (): Local => w.local("i32");
  const [aAt, bAt, left, rowsLeft, outRow] = [i32(), i32(), i32(), i32(), i32()];
  const sums = Array.from({ length: PANEL_ROWS * TILE_VECTORS }, () => w.local("v128"));
  const bVectors = Array.from({ length: TILE_VECTORS }, () => w.local("v128"));
  const tile = { w, relaxedSimd, aAt, bAt, sums, bVectors, aSplat: w.local("v128") };
  const steps = (count: number): void => {
    w.countdown(left, count, () => {
      for (let index = 0; index < count; index++) multiplyStep(tile, index);
      w.addConst(aAt, count * PANEL_ROWS * 4).addConst(bAt, count * PANEL_COLUMNS * 4);
    });
  };
  const storeRow = (row: number): void => {
    for (let vector = 0; vector < TILE_VECTORS; vector++) {
      const sum = sums[row * TILE_VECTORS + vector]!;
      w.get(accumulate);
      w.when(() =>
        w
          .get(outRow)
          .memory("v128.load", vector * 16)
          .get(sum)
          .op("f32x4.add")
          .set(sum),
      );
      w.get(outRow)
        .get(sum)
        .memory("v128.store", vector * 16);
    }
    w.addLocal(outRow, outStride);
  };
  w.countdown(n, 1, () => {
    w.get(a).set(aAt).get(out).set(outRow).get(m).set(rowsLeft);
    w.countdown(rowsLeft, 1, () => {
      for (const sum of sums) w.v128Const([0, 0, 0, 0]).set(sum);
      w.get(b).set(bAt).get(k).set(left);
      steps(K_UNROLL);
      steps(1);
      for (let row = 0; row < PANEL_ROWS; row++) {
        w.get(rowsLeft).i32Const(row).op("i32.gt_s");
        w.when(() => storeRow(row));
      }
      // countdown takes the sixth row away.
      w.addConst(rowsLeft, 1 - PANEL_ROWS);
    });
    w.get(bAt)
      .set(b)
      .addConst(out, PANEL_COLUMNS * 4)
      .addConst(n, 1 - PANEL_COLUMNS);
  });
  return w;
}

/** Rows of 8 results, of which the first `columns` go to `out`. */
function storeEdge(): WasmFunction {
  const w = new WasmFunction(["i32", "i32", "i32", "i32", "i32", "i32"]);
  const [tile, out, outStride, m, columns, accumulate] = [0, 1, 2, 3, 4, 5];
  const left = w.local("i32");
  const [from, to] = [w.local("i32"), w.local("i32")];
  w.countdown(m, 1, () => {
    w.get(tile).set(from).get(out).set(to).get(columns).set(left);
    w.countdown(left, 1, () => {
      w.get(to).get(from).memory("f32.load");
      w.get(to).memory("f32.load").get(from).memory("f32.load").op("f32.add");
      w.get(accumulate).op("i32.eqz").op("select").memory("f32.store");
      w.addConst(from, 4).addConst(to, 4);
    });
    w.addConst(tile, PANEL_COLUMNS * 4).addLocal(out, outStride);
  });
  return w;
}
