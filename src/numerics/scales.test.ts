/**
 * @file Tests of quantisation with scales: ragged edges, error bounds, powers of two, what must not
 * be lost.
 */
import assert from "node:assert/strict";
import { test } from "node:test";
import { Random } from "../base/random.ts";
import { E5M6 } from "./e5m6.ts";
import { E4M3 } from "./fp8.ts";
import {
  ACTIVATION_AMAX_MIN,
  blockGrid,
  columnTileGrid,
  dequantize,
  numScales,
  type PatchGrid,
  powerOfTwoNotBelow,
  type Quantized,
  quantize,
  type ScaleRule,
  tileGrid,
  WEIGHT_AMAX_MIN,
} from "./scales.ts";

const ACTIVATION: ScaleRule = { format: E4M3, amaxMin: ACTIVATION_AMAX_MIN, powerOfTwo: false };

function normals(count: number, seed: number): Float32Array {
  const random = new Random(seed);
  return new Float32Array(count).map(() => random.normal() * 10 ** (random.uniform() * 4 - 2));
}

function quantized(values: Float32Array, grid: PatchGrid, rule: ScaleRule): Quantized {
  const codes =
    rule.format === E4M3 ? new Uint8Array(values.length) : new Uint16Array(values.length);
  const out = { codes, scales: new Float32Array(numScales(grid)).fill(NaN) };
  quantize(values, grid, rule, out);
  return out;
}

test("a tile's scale is its amax over 448, and the amax itself comes back", () => {
  const values = new Float32Array(130);
  values[3] = -44.8;
  values[129] = 896;
  const { codes, scales } = quantized(values, tileGrid(1, 130), ACTIVATION);
  assert.equal(scales[0], Math.fround(Math.fround(44.8) / 448));
  assert.equal(scales[1], 2);
  assert.equal(codes[3], 0xfe);
  assert.equal(codes[129], 0x7e);
});

test("grids of every kind count their scales with ragged edges", () => {
  assert.equal(numScales(tileGrid(3, 129)), 6);
  assert.equal(numScales(columnTileGrid(129, 3)), 6);
  assert.equal(numScales(blockGrid(576, 7168)), 5 * 56);
  assert.equal(numScales(blockGrid(0, 5)), 0);
});

test("every value comes back within half a step, for all grids, formats and rules", () => {
  const seed = 3;
  for (const [rows, columns] of [
    [1, 1],
    [3, 128],
    [2, 300],
    [129, 257],
  ] as const) {
    const values = normals(rows * columns, seed);
    for (const makeGrid of [tileGrid, columnTileGrid, blockGrid]) {
      for (const format of [E4M3, E5M6]) {
        for (const powerOfTwo of [false, true]) {
          const grid = makeGrid(rows, columns);
          const result = quantized(values, grid, { ...ACTIVATION, format, powerOfTwo });
          const back = new Float32Array(values.length);
          dequantize(result, grid, format, back);
          for (let i = 0; i < values.length; i++) {
            const row = Math.floor(Math.floor(i / columns) / grid.patchRows);
            const column = Math.floor((i % columns) / grid.patchColumns);
            const scale = result.scales[row * grid.scaleColumns + column]!;
            const allowed = Math.max(
              Math.abs(values[i]!) * 2 ** -(format.fractionBits + 1) * 1.0001,
              (scale * format.values[1]!) / 2,
            );
            assert.ok(
              Math.abs(back[i]! - values[i]!) <= allowed,
              `seed ${seed}, ${format.name}, element ${i}: ${values[i]} became ${back[i]}`,
            );
          }
        }
      }
    }
  }
});

test("a power-of-two scale is the least power of two not below the exact scale", () => {
  assert.equal(powerOfTwoNotBelow(1), 1);
  assert.equal(powerOfTwoNotBelow(1.0000001192092896), 2);
  assert.equal(powerOfTwoNotBelow(0.75), 1);
  assert.equal(powerOfTwoNotBelow(2 ** -126), 2 ** -126);
  assert.equal(powerOfTwoNotBelow(Infinity), Infinity);

  const seed = 5;
  const values = normals(128 * 4, seed);
  const rule = { ...ACTIVATION, powerOfTwo: true };
  const { codes, scales } = quantized(values, tileGrid(4, 128), rule);
  for (let tile = 0; tile < 4; tile++) {
    const scale = scales[tile]!;
    const amax = Math.max(...values.subarray(128 * tile, 128 * (tile + 1)).map(Math.abs));
    assert.ok(amax / 448 <= scale && scale < (2 * amax) / 448, `seed ${seed}, tile ${tile}`);
    assert.ok(Number.isInteger(Math.log2(scale)), `seed ${seed}, tile ${tile}`);
  }

  // Values that were quantised once come through a second time unchanged.
  const once = new Float32Array(values.length);
  dequantize({ codes, scales }, tileGrid(4, 128), E4M3, once);
  const twice = new Float32Array(values.length);
  dequantize(quantized(once, tileGrid(4, 128), rule), tileGrid(4, 128), E4M3, twice);
  assert.deepEqual(twice, once);
});

test("an all-zero patch keeps a positive scale", () => {
  const zeros = new Float32Array(128);
  const activation = quantized(zeros, tileGrid(1, 128), ACTIVATION);
  assert.equal(activation.scales[0], Math.fround(ACTIVATION_AMAX_MIN / 448));
  const weight = quantized(zeros, blockGrid(1, 128), { ...ACTIVATION, amaxMin: WEIGHT_AMAX_MIN });
  assert.equal(weight.scales[0], 2 ** -126);
  assert.deepEqual(weight.codes, new Uint8Array(128));
});

test("a NaN spoils its own value only, an infinity its whole tile and no other", () => {
  const values = new Float32Array(384).fill(1);
  values[5] = NaN;
  values[200] = -Infinity;
  const grid = tileGrid(1, 384);
  const result = quantized(values, grid, ACTIVATION);
  const back = new Float32Array(384);
  dequantize(result, grid, E4M3, back);
  for (let i = 0; i < 384; i++) {
    const lost = i === 5 || (i >= 128 && i < 256);
    assert.equal(Number.isNaN(back[i]), lost, `element ${i} is ${back[i]}`);
  }
  assert.equal(back[0], 1);
});

test("sizes that do not fit the grid are refused", () => {
  const out = { codes: new Uint8Array(10), scales: new Float32Array(1) };
  assert.throws(
    () => quantize(new Float32Array(9), tileGrid(1, 9), ACTIVATION, out),
    /codes has 10/,
  );
  assert.throws(() => tileGrid(-1, 9), /rows \(-1\)/);
});
