/** @file Tests of weights in every stored form, written to a checkpoint and read back as values. */
import assert from "node:assert/strict";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, test } from "node:test";
import { Random } from "../base/random.ts";
import { roundToBf16 } from "../numerics/bf16.ts";
import { mismatch, toleranceFor } from "../numerics/tolerance.ts";
import { openCheckpointTensors, writeCheckpointTensors } from "./checkpoint-tensors.ts";
import { encodeFloats } from "./float-codec.ts";
import {
  decodeFp8Weight,
  encodeFp8Weight,
  fp8WeightSources,
  readWeightInto,
  scaleName,
} from "./fp8-weights.ts";
import type { TensorReader, TensorSource } from "./tensors.ts";

const directories: string[] = [];
after(() => {
  for (const path of directories) rmSync(path, { recursive: true });
});

function written(sources: readonly TensorSource[]): TensorReader {
  const directory = mkdtempSync(join(tmpdir(), "hadal-weights-"));
  directories.push(directory);
  writeCheckpointTensors(directory, sources);
  return openCheckpointTensors(directory);
}

function randomWeight(numElements: number, seed: number): Float32Array {
  const random = new Random(seed);
  return new Float32Array(numElements).map(() => random.normal() * 0.02);
}

test("the latent projection's scales have the released checkpoint's shape", () => {
  const sources = fp8WeightSources("kv_a", { rows: 576, columns: 7168 }, () => new Float32Array(0));
  assert.deepEqual(
    sources.map(({ name, dtype, shape }) => ({ name, dtype, shape })),
    [
      { name: "kv_a", dtype: "F8_E4M3", shape: [576, 7168] },
      { name: "kv_a_scale_inv", dtype: "F32", shape: [5, 56] },
    ],
  );
  assert.equal(scaleName("model.norm.weight"), "model.norm.weight_scale_inv");
});

test("a weight comes back from FP8 within the storage tolerance, ragged or not", () => {
  for (const powerOfTwo of [false, true]) {
    for (const [rows, columns] of [
      [1, 1],
      [128, 128],
      [129, 300],
      [64, 257],
      [0, 5],
    ] as const) {
      const values = randomWeight(rows * columns, rows);
      const shape = { rows, columns };
      using reader = written(fp8WeightSources("w", shape, () => values, powerOfTwo));
      const back = new Float32Array(values.length);
      readWeightInto(reader, "w", back);
      assert.equal(mismatch(back, values, toleranceFor("storage", "fp8_e4m3")), undefined);

      const direct = new Float32Array(values.length);
      decodeFp8Weight(encodeFp8Weight(values, shape, powerOfTwo), shape, direct);
      assert.deepEqual(back, direct, `${rows}×${columns}`);
    }
  }
});

test("a block's scale is its own: a large block leaves the precision of the others alone", () => {
  const values = randomWeight(256 * 256, 1);
  for (let column = 0; column < 128; column++) values[column] = 1000;
  const { codes, scales } = encodeFp8Weight(values, { rows: 256, columns: 256 });
  assert.equal(scales.length, 4);
  assert.equal(scales[0], Math.fround(1000 / 448));
  for (const scale of scales.subarray(1)) assert.ok(scale < 0.001);
  assert.equal(codes[0], 0x7e);
});

test("F32 comes back bit for bit, BF16 and F16 rounded once, into memory at any offset", () => {
  const values = randomWeight(33, 2);
  const tensors = (["F32", "BF16", "F16"] as const).map(
    (dtype): TensorSource => ({
      name: dtype,
      dtype,
      shape: [3, 11],
      data: () => encodeFloats(dtype, values),
    }),
  );
  using reader = written(tensors);
  const arena = new Float32Array(new SharedArrayBuffer(4 * 40));
  const out = arena.subarray(3, 36);
  readWeightInto(reader, "F32", out);
  assert.deepEqual([...out], [...values]);
  readWeightInto(reader, "BF16", out);
  assert.deepEqual([...out], [...values.map(roundToBf16)]);
  readWeightInto(reader, "F16", out);
  assert.deepEqual([...out], [...values].map(Math.f16round));
});

test("an FP8 weight without its scales, or one of integers or F64, is refused by name", () => {
  const code: TensorSource = {
    name: "w",
    dtype: "F8_E4M3",
    shape: [129, 2],
    data: () => new Uint8Array(258),
  };
  const scale = (dtype: "F32" | "I32", shape: number[], numElements: number): TensorSource => ({
    name: "w_scale_inv",
    dtype,
    shape,
    data: () => new Uint8Array(4 * numElements),
  });
  const out = new Float32Array(258);
  const cases: [TensorSource[], RegExp][] = [
    [[code], /no tensor "w_scale_inv"/],
    [[code, scale("F32", [1, 1], 1)], /w_scale_inv is F32 \[1,1\], expected F32 \[2,1\]/],
    [[code, scale("I32", [2, 1], 2)], /w_scale_inv is I32 \[2,1\], expected F32 \[2,1\]/],
    [[{ ...code, shape: [258] }], /w has shape \[258\], expected \[out, in\]/],
    [[{ ...code, dtype: "I8" }], /w is I8; weights are F32, BF16, F16 or F8_E4M3/],
    [[{ ...code, dtype: "F64", data: () => new Uint8Array(8 * 258) }], /w is F64; weights are F32/],
    [[], /no tensor "w"/],
  ];
  for (const [sources, message] of cases) {
    using reader = written(sources);
    assert.throws(() => readWeightInto(reader, "w", out), { name: "OperationalError", message });
  }
});
