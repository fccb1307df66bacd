/**
 * @file Machine code of products with coded weights: every code exactly, and a row's bits the same
 * alone, beside a few and beside many.
 */
import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { Random } from "../../base/random.ts";
import { toBf16 } from "../../numerics/bf16.ts";
import type { GroupSize } from "../../numerics/integer-groups.ts";
import { Arena } from "../../tensor/arena.ts";
import {
  allocateCoded,
  CODED_FORMATS,
  type CodedShape,
  type CodedWeight,
  codedLayout,
  writeCodedRow,
} from "../../tensor/coded-weight.ts";
import { sliceRows, type Tensor } from "../../tensor/tensor.ts";
import { view } from "../../tensor/view.ts";
import { openCpuDevice } from "../cpu.ts";
import { CODE_VALUES } from "./codes.ts";
import { CODED_MATMUL_VARIANTS, codedMatmul, parseCodedVariant } from "./contract.ts";

describe("products of coded weights on this machine", () => {
  for (const format of CODED_FORMATS) {
    it(`open every code of ${format} exactly`, async () => {
      await using device = await openCpuDevice({ numThreads: 1 });
      const arena = new Arena(device.memory, "codes");
      const all = Array.from({ length: format === "int4" ? 16 : 256 }, (_, code) => code);
      // NaN would spread, and −128 is no code of int8.
      const codes = all.filter((code) => format === "int4" || (code & 0x7f) !== 0x7f);
      const shape = {
        format,
        rows: codes.length,
        columns: 32,
        groupSize: 32 as const,
        numMatrices: 1,
      };
      const weight = allocateCoded(arena, { ...shape, asymmetric: false });
      const values = codes.map((code) => CODE_VALUES[format][code]!);
      for (const [row, value] of values.entries()) {
        const written = format === "e4m3" ? codes[row]! : value;
        const line = Int8Array.from({ length: 32 }, (_, k) => (k === row % 32 ? written : 0));
        const bytes = format === "e4m3" ? Uint8Array.from(line) : line;
        writeCodedRow(weight, row, { codes: bytes, scales: Float32Array.of(0.5) });
      }
      for (const rows of [1, 3, 8, 20]) {
        const a = arena.allocate("bf16", [rows, 32]);
        view(a).fill(toBf16(1));
        const out = arena.allocate("f32", [rows, codes.length]);
        codedMatmul(device, { a, weight, out });
        const expected = values.map((value) => value / 2 + 0);
        for (let row = 0; row < rows; row++) {
          const actual = [...view(sliceRows(out, row, row + 1))].map((value) => value + 0);
          assert.deepEqual(actual, expected, `row ${row} of ${rows}`);
        }
      }
    });
  }

  it("are of no groups that a block of depth would cut", async () => {
    await using device = await openCpuDevice({ numThreads: 1 });
    const arena = new Arena(device.memory, "groups");
    const shape = { format: "int8", rows: 16, columns: 2100, numMatrices: 1 } as const;
    for (const groupSize of [96, 2048] as unknown as GroupSize[]) {
      const odd = { ...shape, groupSize, asymmetric: false };
      assert.throws(() => allocateCoded(arena, odd), /groups \(\d+\) are of 32, 64, 128/);
    }
  });

  for (const variant of CODED_MATMUL_VARIANTS) {
    it(`give a row the same bits alone, beside a few and beside many: ${variant}`, async () => {
      const seed = Date.now() % 2 ** 31;
      const random = new Random(seed, variant);
      await using device = await openCpuDevice({ numThreads: 1 });
      const arena = new Arena(device.memory, "rows");
      for (const [n, k, groupSize] of [
        [150, 1100, 64],
        [33, 70, 32],
        [272, 2100, 128],
      ] as const) {
        const { format, hasOffsets: asymmetric } = parseCodedVariant(variant);
        const shape = { format, rows: n, columns: k, groupSize, numMatrices: 1, asymmetric };
        const weight = randomWeight(arena, random, shape);
        const a = arena.allocate("bf16", [40, k]);
        view(a).forEach((_, at, all) => {
          all[at] = toBf16(random.normal());
        });
        const product = (rows: Tensor<"bf16">): Float32Array => {
          const out = arena.allocate("f32", [rows.rows, n]);
          codedMatmul(device, { a: rows, weight, out });
          return Float32Array.from(view(out));
        };
        const whole = product(a);
        for (const [start, end] of [
          [0, 1],
          [3, 5],
          [7, 11],
          [12, 20],
          [20, 40],
        ] as const) {
          const part = product(sliceRows(a, start, end));
          assert.deepEqual(part, whole.slice(start * n, end * n), `${n}×${k}, seed ${seed}`);
        }
      }
    });
  }
});

function randomWeight(arena: Arena, random: Random, shape: CodedShape): CodedWeight {
  const weight = allocateCoded(arena, shape);
  const { groups } = codedLayout(shape);
  for (let row = 0; row < shape.rows; row++) {
    const code = (): number => random.below(15) - 8;
    const codes = Int8Array.from({ length: shape.columns }, code);
    writeCodedRow(weight, row, {
      codes: shape.format === "e4m3" ? Uint8Array.from(codes, (value) => 0x30 + value) : codes,
      scales: Float32Array.from({ length: groups }, () => 0.01 + random.uniform()),
      zeros: Int8Array.from({ length: groups }, code),
    });
  }
  return weight;
}
