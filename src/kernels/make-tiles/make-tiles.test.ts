/** @file Tiles of one source that is read once, to the bit what they are one after the other. */
import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { Random } from "../../base/random.ts";
import type { Device } from "../../device/device.ts";
import { Arena } from "../../tensor/arena.ts";
import { DTYPE_BYTES } from "../../tensor/dtype.ts";
import { allocateScaled, type RowGroups, type ScaledTensor } from "../../tensor/scaled-tensor.ts";
import type { Tensor } from "../../tensor/tensor.ts";
import { fillFrom } from "../../tensor/view.ts";
import { castRows } from "../cast-rows/contract.ts";
import { openCpuDevice } from "../cpu.ts";
import { quantizeTiles } from "../quantize-tiles/contract.ts";
import { rmsNorm } from "../rms-norm/contract.ts";
import { MAKE_TILES_VARIANTS, makeTiles } from "./contract.ts";

const EPSILON = 1e-6;
const ALONG = { amaxMin: 1e-12, powerOfTwo: false } as const;
const ACROSS = { amaxMin: 1e-12, powerOfTwo: true } as const;

/** Codes and scales that nothing has written are zero. */
function cleared(arena: Arena, shape: Parameters<typeof allocateScaled>[1]): ScaledTensor {
  const out = allocateScaled(arena, shape);
  for (const tensor of [out.codes, out.scales]) bytesOf(tensor).fill(0);
  return out;
}

function bytesOf({ memory, byteOffset, rows, rowStride, dtype }: Tensor): Uint8Array {
  return memory.u8.subarray(byteOffset, byteOffset + rows * rowStride * DTYPE_BYTES[dtype]);
}

/** Bytes of both ways: [together, one after the other] of each output. */
function bothWays(
  device: Device,
  variant: (typeof MAKE_TILES_VARIANTS)[number],
  [rows, columns]: readonly [number, number],
  starts: readonly number[] | null,
): readonly (readonly [Uint8Array, Uint8Array])[] {
  const arena = new Arena(device.memory, "make tiles");
  const random = new Random(5, variant);
  const normal = (shape: readonly number[]): Tensor<"f32"> => {
    const out = arena.allocate("f32", shape);
    fillFrom(
      out,
      Float32Array.from({ length: out.rows * out.columns }, () => random.normal()),
    );
    return out;
  };
  const [of, made] = variant.split(".") as ["f32" | "bf16" | "norm", "along" | "across" | "both"];
  const [source, gain] = [normal([rows, columns]), normal([1, columns])];
  const narrow = arena.allocate("bf16", [rows, columns]);
  if (of === "norm") rmsNorm(device, { x: source, gain, epsilon: EPSILON, out: narrow });
  else castRows(device, { x: source, out: narrow });
  let groups: RowGroups = { kind: "none" };
  if (starts !== null) {
    const offsets = arena.allocate("i32", [1, starts.length]);
    fillFrom(offsets, Int32Array.from(starts));
    groups = { kind: "offsets", offsets };
  }
  const shape = { format: "e4m3", rows, columns } as const;
  const outputs = () => ({
    along: cleared(arena, { ...shape, tileRows: 1, tileColumns: 128 }),
    across: cleared(arena, { ...shape, tileRows: 128, tileColumns: 1, groups }),
  });
  const [together, apart] = [outputs(), outputs()];
  const plain = of === "bf16" ? narrow : source;
  makeTiles(device, {
    x: of === "norm" ? source : plain,
    ...(of === "norm" ? { norm: { gain, epsilon: EPSILON } } : {}),
    ...(made === "across" ? {} : { along: { out: together.along, ...ALONG } }),
    ...(made === "along" ? {} : { across: { out: together.across, ...ACROSS } }),
  });
  const x = of === "f32" ? source : narrow;
  if (made !== "across") quantizeTiles(device, { x, out: apart.along, ...ALONG });
  if (made !== "along") quantizeTiles(device, { x, out: apart.across, ...ACROSS });
  const parts = ({ along, across }: typeof apart): Tensor[] =>
    [along, across].flatMap(({ codes, scales }): Tensor[] => [codes, scales]);
  const others = parts(apart);
  return parts(together).map(
    (tensor, index) => [bytesOf(tensor), bytesOf(others[index]!)] as const,
  );
}

for (const kernels of ["x64", "wasm", "reference"] as const) {
  describe(`tiles of one source, ${kernels}`, () => {
    for (const variant of MAKE_TILES_VARIANTS) {
      it(`are what they are one after the other: ${variant}`, async () => {
        await using device = await openCpuDevice({ kernels, numThreads: 2 });
        const cases = [
          [[300, 200], null],
          [
            [300, 72],
            [0, 100, 100, 229, 300],
          ],
          [[5, 1000], null],
        ] as const;
        for (const [size, starts] of cases) {
          for (const [got, want] of bothWays(device, variant, size, starts)) {
            assert.ok(Buffer.from(got).equals(Buffer.from(want)), `${size} differ`);
          }
        }
      });
    }
  });
}
