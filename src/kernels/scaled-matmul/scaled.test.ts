/**
 * @file The references of tiles and scaled products against numerics/ and against plain sums of
 * dequantised values: independent of the conformance suite, for which they are the oracle.
 */
import assert from "node:assert/strict";
import { after, before, describe, it } from "node:test";
import { Random } from "../../base/random.ts";
import type { Device } from "../../device/device.ts";
import { dotHopperFp8 } from "../../numerics/accumulate.ts";
import { E5M6 } from "../../numerics/e5m6.ts";
import { E4M3 } from "../../numerics/fp8.ts";
import {
  ACTIVATION_AMAX_MIN,
  blockGrid,
  columnTileGrid,
  type PatchGrid,
  quantize,
  tileGrid,
} from "../../numerics/scales.ts";
import { Arena } from "../../tensor/arena.ts";
import { allocateScaled, type ScaledTensor } from "../../tensor/scaled-tensor.ts";
import type { Tensor } from "../../tensor/tensor.ts";
import { fillFrom, view } from "../../tensor/view.ts";
import { openCpuDevice } from "../cpu.ts";
import { groupedScaledMatmul } from "../grouped-scaled-matmul/contract.ts";
import { dequantizeTiles, quantizeTiles, retile } from "../quantize-tiles/contract.ts";
import { scaledMatmul } from "./contract.ts";

let device: Device;
let arena: Arena;
before(async () => {
  device = await openCpuDevice({ kernels: "reference", numThreads: 1 });
  arena = new Arena(device.memory, "scaled products");
});
after(() => device[Symbol.asyncDispose]());

const AMAX_MIN = ACTIVATION_AMAX_MIN;

function normal(seed: number, rows: number, columns: number): Tensor<"f32"> {
  const random = new Random(seed, "values");
  const x = arena.allocate("f32", [rows, columns]);
  fillFrom(
    x,
    Float32Array.from({ length: rows * columns }, () => random.normal()),
  );
  return x;
}

function quantized(
  x: Tensor<"f32">,
  [tileRows, tileColumns]: readonly [number, number],
  { powerOfTwo = false, offsets }: { powerOfTwo?: boolean; offsets?: Tensor<"i32"> } = {},
): ScaledTensor<"e4m3"> {
  const { rows, columns } = x;
  const shape = { format: "e4m3", rows, columns, tileRows, tileColumns } as const;
  const groups = offsets === undefined ? {} : { groups: { kind: "offsets", offsets } as const };
  const out = allocateScaled(arena, { ...shape, ...groups });
  quantizeTiles(device, { x, out, amaxMin: AMAX_MIN, powerOfTwo });
  return out;
}

function values(x: ScaledTensor): Float32Array {
  const out = arena.allocate("f32", [x.rows, x.columns]);
  dequantizeTiles(device, { x, out });
  return Float32Array.from(view(out));
}

describe("quantizeTiles", () => {
  const grids: Readonly<Record<string, (rows: number, columns: number) => PatchGrid>> = {
    "1×128 tiles": tileGrid,
    "128×1 tiles": columnTileGrid,
    "128×128 blocks": blockGrid,
  };
  for (const [name, gridOf] of Object.entries(grids)) {
    for (const powerOfTwo of [false, true]) {
      it(`agrees with numerics for ${name}${powerOfTwo ? ", power-of-two scales" : ""}`, () => {
        const x = normal(1, 150, 270);
        const grid = gridOf(150, 270);
        const codes = new Uint8Array(150 * 270);
        const scales = new Float32Array(grid.scaleRows * grid.scaleColumns);
        const rule = { format: E4M3, amaxMin: AMAX_MIN, powerOfTwo };
        quantize(Float32Array.from(view(x)), grid, rule, { codes, scales });
        const out = quantized(x, [grid.patchRows, grid.patchColumns], { powerOfTwo });
        assert.deepEqual(Uint8Array.from(view(out.codes)), codes);
        assert.deepEqual(Float32Array.from(view(out.scales)), scales);
      });
    }
  }

  it("packs E5M6 in one and a half bytes, which hold six bits of fraction", () => {
    const x = normal(2, 9, 131);
    const shape = { format: "e5m6", rows: 9, columns: 131, tileRows: 1, tileColumns: 128 } as const;
    const out = allocateScaled(arena, shape);
    assert.deepEqual(out.codes.shape, [9, 197]);
    quantizeTiles(device, { x, out, amaxMin: AMAX_MIN, powerOfTwo: true });
    const back = values(out);
    for (const [index, value] of view(x).entries()) {
      assert.ok(Math.abs(back[index]! - value) <= Math.abs(value) * 2 ** -(E5M6.fractionBits + 1));
    }
  });
});

describe("retile", () => {
  it("is the quantisation of the dequantised values", () => {
    const x = quantized(normal(3, 200, 140), [1, 128]);
    const open = arena.allocate("f32", [200, 140]);
    dequantizeTiles(device, { x, out: open });
    const shape = {
      format: "e4m3",
      rows: 200,
      columns: 140,
      tileRows: 128,
      tileColumns: 1,
    } as const;
    const out = allocateScaled(arena, shape);
    retile(device, { x, out, amaxMin: AMAX_MIN, powerOfTwo: false });
    const expected = quantized(open, [128, 1]);
    assert.deepEqual(Uint8Array.from(view(out.codes)), Uint8Array.from(view(expected.codes)));
    assert.deepEqual(Float32Array.from(view(out.scales)), Float32Array.from(view(expected.scales)));
  });

  const lossOf = (powerOfTwo: boolean): number => {
    // Magnitudes within two powers of two: no code becomes subnormal under a neighbour's scale.
    const x = normal(4, 256, 256);
    const flat = view(x).map((value) => Math.sign(value) * (1 + (Math.abs(value) % 1)));
    fillFrom(x, flat);
    const tiles = quantized(x, [1, 128], { powerOfTwo });
    const shape = {
      format: "e4m3",
      rows: 256,
      columns: 256,
      tileRows: 128,
      tileColumns: 1,
    } as const;
    const out = allocateScaled(arena, shape);
    retile(device, { x: tiles, out, amaxMin: AMAX_MIN, powerOfTwo });
    const [before, after] = [values(tiles), values(out)];
    return before.reduce((worst, value, at) => Math.max(worst, Math.abs(value - after[at]!)), 0);
  };

  it("loses nothing between power-of-two scales, and something between others", () => {
    assert.equal(lossOf(true), 0);
    assert.ok(lossOf(false) > 0.01);
  });
});

describe("scaledMatmul", () => {
  const [m, n, k] = [21, 150, 300];
  const operands = (): { a: ScaledTensor<"e4m3">; b: ScaledTensor<"e4m3"> } => ({
    a: quantized(normal(5, m, k), [1, 128]),
    b: quantized(normal(6, n, k), [128, 128]),
  });

  it("is the product of the dequantised operands", () => {
    const { a, b } = operands();
    const out = arena.allocate("f32", [m, n]);
    scaledMatmul(device, { transposition: "nt", a, b, out });
    const [left, right] = [values(a), values(b)];
    const actual = view(out);
    for (let row = 0; row < m; row++) {
      for (let column = 0; column < n; column++) {
        let [expected, magnitude] = [0, 0];
        for (let depth = 0; depth < k; depth++) {
          const term = left[row * k + depth]! * right[column * k + depth]!;
          expected += term;
          magnitude += Math.abs(term);
        }
        // Dequantised values are rounded to float32, the product's scales to nothing.
        assert.ok(Math.abs(actual[row * n + column]! - expected) <= 1e-6 * magnitude);
      }
    }
  });

  it("with the tensor core's accumulation and scales of one is dotHopperFp8", () => {
    const { a, b } = operands();
    for (const { scales } of [a, b]) view(scales).fill(1);
    const out = arena.allocate("f32", [m, n]);
    scaledMatmul(device, { transposition: "nt", a, b, out, accumulation: "tensorCore" });
    const [left, right] = [view(a.codes), view(b.codes)];
    for (const [row, column] of [
      [0, 0],
      [20, 149],
      [7, 33],
    ] as const) {
      const expected = dotHopperFp8(
        Uint8Array.from(left.subarray(row * k, (row + 1) * k)),
        Uint8Array.from(right.subarray(column * k, (column + 1) * k)),
        { promotionInterval: 128 },
      );
      assert.equal(view(out)[row * n + column], expected);
    }
  });

  it("refuses pieces that do not nest, and the bit model of E5M2", () => {
    const { a, b } = operands();
    const out = arena.allocate("f32", [m, n]);
    const call = { transposition: "nt", a, b, out } as const;
    assert.throws(() => scaledMatmul(device, { ...call, promotionInterval: 96 }), /multiples of/);
    assert.throws(
      () => scaledMatmul(device, { ...call, promotionInterval: 100 }),
      /multiple of 32/,
    );
    const wide = { ...a, format: "e5m2", codes: { ...a.codes, dtype: "e5m2" } } as const;
    const modelled = { ...call, a: wide, accumulation: "tensorCore" } as const;
    assert.throws(() => scaledMatmul(device, modelled), /modelled for E4M3/);
  });
});

describe("groupedScaledMatmul tn", () => {
  it("adds up each expert's tokens with tiles that begin at its first row", () => {
    const sizes = [70, 0, 130, 5];
    const offsets = arena.allocate("i32", [1, 5]);
    fillFrom(offsets, [0, 70, 70, 200, 205]);
    const [x, y] = [normal(7, 205, 24), normal(8, 205, 20)];
    const [a, b] = [x, y].map((open) => quantized(open, [128, 1], { offsets }));
    const out = arena.allocate("f32", [4 * 24, 20]);
    groupedScaledMatmul(device, { transposition: "tn", a: a!, b: b!, out, offsets });
    let start = 0;
    for (const [group, rows] of sizes.entries()) {
      const part = (open: Tensor<"f32">): ScaledTensor<"e4m3"> => {
        const piece = arena.allocate("f32", [rows, open.columns]);
        const first = start * open.columns;
        fillFrom(piece, view(open).subarray(first, first + rows * open.columns));
        return quantized(piece, [128, 1]);
      };
      const alone = arena.allocate("f32", [24, 20]);
      scaledMatmul(device, { transposition: "tn", a: part(x), b: part(y), out: alone });
      const stacked = view(out).subarray(group * 24 * 20, (group + 1) * 24 * 20);
      assert.deepEqual(Float32Array.from(stacked), Float32Array.from(view(alone)));
      start += rows;
    }
  });
});
