/** @file The gated activation between codes, to the bit what its parts give one after the other. */
import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { Random } from "../../base/random.ts";
import type { Device } from "../../device/device.ts";
import { Arena } from "../../tensor/arena.ts";
import { DTYPE_BYTES } from "../../tensor/dtype.ts";
import {
  allocateScaled,
  type ScaledFormat,
  type ScaledTensor,
} from "../../tensor/scaled-tensor.ts";
import type { Tensor } from "../../tensor/tensor.ts";
import { fillFrom } from "../../tensor/view.ts";
import { openCpuDevice } from "../cpu.ts";
import { dequantizeTiles, quantizeTiles } from "../quantize-tiles/contract.ts";
import { swiglu, swigluBackward } from "../swiglu/contract.ts";
import { swigluTiles, swigluTilesBackward } from "./contract.ts";

const ALONG = { amaxMin: 1e-12, powerOfTwo: false } as const;
const ACROSS = { amaxMin: 1e-12, powerOfTwo: true } as const;

interface Call {
  readonly format: ScaledFormat;
  readonly isWeighted: boolean;
  /** First rows of groups, and their end. */
  readonly offsets?: readonly number[];
  readonly rows: number;
  readonly columns: number;
}

class Operands {
  readonly arena: Arena;
  readonly device: Device;
  readonly random = new Random(3, "swiglu tiles");

  constructor(device: Device) {
    this.device = device;
    this.arena = new Arena(device.memory, "swiglu tiles");
  }

  normal(shape: readonly number[]): Tensor<"f32"> {
    const out = this.arena.allocate("f32", shape);
    const draw = (): number => this.random.normal();
    fillFrom(out, Float32Array.from({ length: out.rows * out.columns }, draw));
    return out;
  }

  /** Outputs of all kernels; what nothing writes is zero in all of them. */
  outputs({ format, rows, columns }: Call, groups: ScaledTensor["groups"]) {
    const { arena } = this;
    const along = (of: ScaledFormat, width: number): ScaledTensor =>
      this.#cleared({ format: of, rows, columns: width, tileRows: 1, tileColumns: 128 });
    const across = (width: number): ScaledTensor =>
      this.#cleared({
        ...{ format: "e4m3", rows, columns: width, tileRows: 128, tileColumns: 1 },
        groups,
      });
    return {
      kept: along(format, 2 * columns),
      out: along("e4m3", columns),
      along: along("e4m3", 2 * columns),
      across: across(2 * columns),
      input: across(columns),
      dWeight: arena.allocateZeros("f32", [rows, 1]),
    };
  }

  groups(offsets: readonly number[] | undefined): ScaledTensor["groups"] {
    if (offsets === undefined) return { kind: "none" };
    const tensor = this.arena.allocate("i32", [1, offsets.length]);
    fillFrom(tensor, Int32Array.from(offsets));
    return { kind: "offsets", offsets: tensor };
  }

  #cleared(shape: Parameters<typeof allocateScaled>[1]): ScaledTensor {
    const out = allocateScaled(this.arena, shape);
    for (const tensor of [out.codes, out.scales]) this.bytes(tensor).fill(0);
    return out;
  }

  bytes({ byteOffset, rows, rowStride, dtype }: Tensor): Uint8Array {
    const end = byteOffset + rows * rowStride * DTYPE_BYTES[dtype];
    return this.device.memory.u8.subarray(byteOffset, end);
  }
}

/** Both ways from the same operands: by outputs, their bytes. */
function bothWays(device: Device, call: Call) {
  const operands = new Operands(device);
  const { rows, columns, isWeighted } = call;
  const gateUp = operands.normal([rows, 2 * columns]);
  const dOut = operands.normal([rows, columns]);
  const weight = isWeighted ? operands.normal([rows, 1]) : undefined;
  const groups = operands.groups(call.offsets);
  const [apart, fused] = [operands.outputs(call, groups), operands.outputs(call, groups)];
  const activation = operands.arena.allocate("bf16", [rows, columns]);
  const opened = operands.arena.allocate("f32", [rows, 2 * columns]);
  const dGateUp = operands.arena.allocate("bf16", [rows, 2 * columns]);
  const weighted = weight === undefined ? {} : { weight };
  const weights = (dWeight: Tensor<"f32">) => (weight === undefined ? {} : { weight, dWeight });

  quantizeTiles(device, { x: gateUp, out: apart.kept, ...ALONG });
  swiglu(device, { gateUp, ...weighted, out: activation });
  quantizeTiles(device, { x: activation, out: apart.out, ...ALONG });
  dequantizeTiles(device, { x: apart.kept, out: opened });
  const gradients = { dOut, dGateUp, activation };
  swigluBackward(device, { gateUp: opened, ...weights(apart.dWeight), ...gradients });
  quantizeTiles(device, { x: dGateUp, out: apart.along, ...ALONG });
  quantizeTiles(device, { x: dGateUp, out: apart.across, ...ACROSS });
  quantizeTiles(device, { x: activation, out: apart.input, ...ACROSS });

  const forward = { kept: { out: fused.kept, ...ALONG }, out: { out: fused.out, ...ALONG } };
  swigluTiles(device, { gateUp, weight, ...forward });
  swigluTilesBackward(device, {
    gateUp: fused.kept,
    ...weights(fused.dWeight),
    dOut,
    along: { out: fused.along, ...ALONG },
    across: { out: fused.across, ...ACROSS },
    input: { out: fused.input, ...ACROSS },
  });
  const parts = ({ dWeight, ...tiles }: typeof apart): Record<string, Tensor> => ({
    ...Object.fromEntries(
      Object.entries(tiles).flatMap(([name, { codes, scales }]) => [
        [`${name} codes`, codes as Tensor],
        [`${name} scales`, scales as Tensor],
      ]),
    ),
    dWeight,
  });
  return { operands, apart: parts(apart), fused: parts(fused) };
}

const CALLS: readonly Call[] = [
  { format: "e4m3", isWeighted: true, offsets: [0, 100, 100, 229, 300], rows: 300, columns: 96 },
  { format: "e4m3", isWeighted: false, rows: 270, columns: 200 },
  { format: "e5m6", isWeighted: false, rows: 20, columns: 33 },
  // Wider than what is opened at once.
  { format: "e4m3", isWeighted: true, rows: 3, columns: 16384 },
];

for (const kernels of ["x64", "wasm", "reference"] as const) {
  describe(`the gated activation between codes, ${kernels}`, () => {
    for (const call of CALLS) {
      if (kernels === "reference" && call.columns > 1000) continue;
      const weighted = call.isWeighted ? ", weighted" : "";
      const name = `${call.rows}×${call.columns}, ${call.format}${weighted}`;
      it(`is what its parts give one after the other: ${name}`, async () => {
        await using device = await openCpuDevice({ kernels, numThreads: 2 });
        const { operands, apart, fused } = bothWays(device, call);
        for (const [part, tensor] of Object.entries(apart)) {
          const [want, got] = [tensor, fused[part]!].map((each) => operands.bytes(each));
          assert.ok(Buffer.from(got!).equals(Buffer.from(want!)), `${part} differ`);
        }
      });
    }
  });
}
