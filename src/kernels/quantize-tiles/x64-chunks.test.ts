/**
 * @file Quantisation by reciprocals, against the definition, where it could differ: values beside
 * the middle between two codes, over scales near those that no correction is trusted with.
 */
import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { Random } from "../../base/random.ts";
import type { Device } from "../../device/device.ts";
import { E4M3, E5M2 } from "../../numerics/fp8.ts";
import { Arena } from "../../tensor/arena.ts";
import { allocateScaled } from "../../tensor/scaled-tensor.ts";
import { fillFrom, view } from "../../tensor/view.ts";
import { openCpuDevice } from "../cpu.ts";
import { quantizeTiles } from "./contract.ts";
import { HARD_BITS, HARD_DISTANCE } from "./x64-chunks.ts";

const FORMATS = { e4m3: E4M3, e5m2: E5M2 } as const;
type Format = keyof typeof FORMATS;

const float = new Float32Array(1);
const bits = new Int32Array(float.buffer);

/** The float32 that is `steps` places from the one nearest to `value`. */
function beside(value: number, steps: number): number {
  float[0] = value;
  bits[0] = bits[0]! + steps;
  return float[0];
}

/** Middles between neighbouring codes of a format, with the floats around them, over a scale. */
function aroundMiddles(format: Format, scale: number): number[] {
  const { values, largestCode } = FORMATS[format];
  return Array.from({ length: largestCode }, (_, code) => {
    const middle = (values[code]! + values[code + 1]!) / 2;
    return [-2, -1, 0, 1, 2].map((steps) => beside(middle * scale, steps) * (-1) ** code);
  }).flat();
}

/** The scale that a tile gets whose largest value is this one's. */
function scaleMade(format: Format, scale: number): number {
  const { largest } = FORMATS[format];
  return Math.fround(Math.fround(scale * largest) / largest);
}

/** Whether one correction is not trusted with a scale. */
function isHard(scale: number): boolean {
  float[0] = scale;
  const above = (bits[0]! + HARD_DISTANCE) & (2 ** HARD_BITS - 1);
  return above <= 2 * HARD_DISTANCE && above !== HARD_DISTANCE;
}

/** Scales at every distance from a multiple of 2^HARD_BITS that matters, and others. */
function scalesToTry(format: Format): number[] {
  const random = new Random(7, `middles ${format}`);
  const reach = 4 * HARD_DISTANCE;
  const distances = Array.from({ length: 2 * reach + 1 }, (_, at) => at - reach);
  const near = distances.flatMap((distance) =>
    [8, 9, 11, 15].map((eighths) => beside(eighths * 2 ** -17, distance)),
  );
  const far = Array.from({ length: 60 }, () => Math.fround(random.uniform() * 2 ** -9));
  return [...near, ...far].map((scale) => scaleMade(format, scale));
}

/** The bytes of codes and scales, one row a scale; `isTurned`: one column a scale. */
function quantised(
  device: Device,
  format: Format,
  scales: readonly number[],
  isTurned: boolean,
): Uint8Array {
  const arena = new Arena(device.memory, "middles");
  const { largest } = FORMATS[format];
  const lines = scales.map((scale) => [
    Math.fround(scale * largest),
    ...aroundMiddles(format, scale),
  ]);
  const [count, depth] = [lines.length, lines[0]!.length];
  const [rows, columns] = isTurned ? [depth, count] : [count, depth];
  const x = arena.allocate("f32", [rows, columns]);
  const values = Float32Array.from({ length: rows * columns }, (_, at) => {
    const [row, column] = [Math.floor(at / columns), at % columns];
    return isTurned ? lines[column]![row]! : lines[row]![column]!;
  });
  fillFrom(x, values);
  const [tileRows, tileColumns] = isTurned ? [rows, 1] : [1, columns];
  const out = allocateScaled(arena, { format, rows, columns, tileRows, tileColumns });
  quantizeTiles(device, { x, out, amaxMin: 1e-30, powerOfTwo: false });
  const bytes = [view(out.codes), view(out.scales)].map(
    ({ buffer, byteOffset, byteLength }) => new Uint8Array(buffer, byteOffset, byteLength),
  );
  return Uint8Array.from(bytes.flatMap((part) => [...part]));
}

/** One refused tile sends all others to code that divides, so scales of both kinds stay apart. */
const KINDS = {
  "trusted scales": (scale: number) => !isHard(scale),
  "hard scales": isHard,
} as const;

describe("quantisation of ordinary numbers in machine code", () => {
  for (const format of ["e4m3", "e5m2"] as const) {
    for (const [kind, isChosen] of Object.entries(KINDS)) {
      it(`gives ${format} codes of the definition beside every middle: ${kind}`, async () => {
        await using native = await openCpuDevice({ numThreads: 1 });
        await using plain = await openCpuDevice({ kernels: "reference", numThreads: 1 });
        const scales = scalesToTry(format).filter(isChosen);
        assert.ok(scales.length > 20, `${scales.length} scales`);
        for (const isTurned of [false, true]) {
          const [got, want] = [native, plain].map((device) =>
            quantised(device, format, scales, isTurned),
          );
          assert.ok(Buffer.from(got!).equals(Buffer.from(want!)), "codes or scales differ");
        }
      });
    }
  }
});
