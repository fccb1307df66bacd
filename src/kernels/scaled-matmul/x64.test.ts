/**
 * @file Machine code of scaled products, over the cores of both kinds of processor: every code
 * exactly, and pieces of every size. The conformance suite runs the core of this machine alone.
 */
import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { Random } from "../../base/random.ts";
import type { X64 } from "../../codegen/x64/assembler.ts";
import { E4M3, E5M2, fromE4m3, toE4m3, toE5m2 } from "../../numerics/fp8.ts";
import type { X64Core } from "../matmul/x64-core.ts";
import type { TileUnit } from "../matmul/x64-tile-core.ts";
import { EMULATION_BYTES, emulatedTiles } from "../matmul/x64-tiles-test-support.ts";
import { nativeThread } from "../native-thread-test-support.ts";
import type { ProductFormat } from "./contract.ts";
import { createReferenceScaledMultiplier } from "./reference.ts";
import type { ScaledBlock } from "./scaled-block.ts";
import { createScaledMultiplierOver } from "./x64.ts";
import { scaledCore } from "./x64-core.ts";
import { scaledTileCore } from "./x64-tile-core.ts";

const { context, reason } = nativeThread(16 * 2 ** 20);
const { memory, native } = context;

const noBf16 = native?.features.avx512Bf16 ? "" : reason || "this processor has no AVX512_BF16";
const noTiles = native?.features.amxBf16 ? "" : reason || "this processor has no AMX";
const tileState = memory.reserve(EMULATION_BYTES);
const emulated = (a: X64): TileUnit => emulatedTiles(a, memory.baseAddress + tileState);

/** Every core, and why this processor cannot run it. */
const CORES: readonly {
  readonly name: string;
  readonly refusal: string;
  readonly coreOf: (format: ProductFormat) => X64Core;
}[] = [
  { name: "f32", refusal: reason, coreOf: (format) => scaledCore(format, format, "f32") },
  { name: "bf16", refusal: noBf16, coreOf: (format) => scaledCore(format, format, "bf16") },
  { name: "tiles", refusal: noTiles, coreOf: (format) => scaledTileCore(format, format, null) },
  {
    name: "emulated tiles",
    refusal: reason,
    coreOf: (format) => scaledTileCore(format, format, emulated),
  },
];

const [aCodes, bCodes, aScales, bScales, out] = [
  memory.reserve(2 ** 20),
  memory.reserve(2 ** 20),
  memory.reserve(2 ** 20),
  memory.reserve(2 ** 20),
  memory.reserve(2 ** 20),
] as const;

/** "nt": rows of a by rows of b, one scale a row and tile of depth. */
function blockOf(m: number, n: number, k: number, tileDepth: number): ScaledBlock {
  const place = { tileRows: 1, tileColumns: tileDepth, firstRow: 0, firstColumn: 0, rowStride: k };
  const scaleRowStride = Math.ceil(k / tileDepth);
  return {
    a: { ...place, codesOffset: aCodes, scalesOffset: aScales, scaleRowStride },
    b: { ...place, codesOffset: bCodes, scalesOffset: bScales, scaleRowStride },
    outOffset: out,
    outRowStride: n,
    m,
    n,
    k,
    pieceDepth: tileDepth,
    accumulate: false,
  };
}

for (const { name, refusal, coreOf } of CORES) {
  describe(`x64 scaled products in ${name}`, { skip: refusal || false }, () => {
    const multiplierOf = (format: ProductFormat) =>
      createScaledMultiplierOver(coreOf(format), [format, format], "nt", context);

    for (const [format, { values }, toCode] of [
      ["e4m3", E4M3, toE4m3],
      ["e5m2", E5M2, toE5m2],
    ] as const) {
      it(`multiplies every code of ${format} by one exactly`, () => {
        for (let code = 0; code < 256; code++) memory.u8[aCodes + code] = code;
        memory.u8[bCodes] = toCode(1);
        memory.f32.fill(1, aScales / 4, aScales / 4 + 256);
        memory.f32[bScales / 4] = 0.5;
        multiplierOf(format)(blockOf(256, 1, 1, 1));
        const products = memory.f32.slice(out / 4, out / 4 + 256);
        // A product and a sum make +0 of −0.
        assert.deepEqual(
          [...products].map((value) => value + 0),
          [...values].map((value) => value / 2 + 0),
        );
      });
    }

    it("promotes pieces of every depth as the reference does", () => {
      const seed = Date.now() % 2 ** 31;
      const random = new Random(seed, "pieces");
      const multiply = multiplierOf("e4m3");
      const reference = createReferenceScaledMultiplier("nt.e4m3.e4m3", context);
      for (const [k, tileDepth] of [
        [5, 1],
        [70, 3],
        [1100, 7],
        [1300, 32],
        [2500, 128],
        [2500, 1100],
        [3000, 3000],
      ] as const) {
        const [m, n] = [13, 35];
        for (let at = 0; at < m * k; at++) memory.u8[aCodes + at] = toE4m3(random.normal());
        for (let at = 0; at < n * k; at++) memory.u8[bCodes + at] = toE4m3(random.normal());
        for (let at = 0; at < n * k; at++) {
          memory.f32[aScales / 4 + at] = 1 + random.uniform();
          memory.f32[bScales / 4 + at] = 1 + random.uniform();
        }
        const block = blockOf(m, n, k, tileDepth);
        reference(block);
        const expected = memory.f32.slice(out / 4, out / 4 + m * n);
        multiply(block);
        const worst = expected.reduce(
          (most, value, at) => Math.max(most, Math.abs(value - memory.f32[out / 4 + at]!)),
          0,
        );
        const largest = expected.reduce((most, value) => Math.max(most, Math.abs(value)), 0);
        assert.ok(worst <= largest * 2e-6, `seed ${seed}: ${k} by ${tileDepth}: ${worst}`);
        assert.ok(Math.abs(fromE4m3(memory.u8[aCodes]!)) < 448);
      }
    });
  });
}
