/**
 * @file Machine code of scaled products, over the cores of both kinds of processor: every code
 * exactly, and pieces of every size. The conformance suite runs the core of this machine alone.
 */
import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { Random } from "../../base/random.ts";
import type { X64 } from "../../codegen/x64/assembler.ts";
import { E4M3, E5M2, fromE4m3, toE4m3, toE5m2 } from "../../numerics/fp8.ts";
import { TRANSPOSITIONS, type Transposition } from "../matmul/block-multiplier.ts";
import type { X64InputDType } from "../matmul/x64-pack.ts";
import type { TileUnit } from "../matmul/x64-tile-core.ts";
import { EMULATION_BYTES, emulatedTiles } from "../matmul/x64-tiles-test-support.ts";
import { nativeThread } from "../native-thread-test-support.ts";
import type { ProductFormat } from "./contract.ts";
import { createReferenceScaledMultiplier } from "./reference.ts";
import type { ScaledBlock, ScaledBlockMultiplier, ScaledPlace } from "./scaled-block.ts";
import { createScaledMultiplierOver } from "./x64.ts";
import { scaledCore } from "./x64-core.ts";
import { createScaledTileMultiplier } from "./x64-tiles.ts";

const { context, reason } = nativeThread(16 * 2 ** 20);
const { memory, native } = context;

const noBf16 = native?.features.avx512Bf16 ? "" : reason || "this processor has no AVX512_BF16";
const noTables = native?.features.avx512Vbmi ? "" : reason || "this processor has no AVX512_VBMI";
const noTiles = native?.features.amxBf16 ? noTables : reason || "this processor has no AMX";
const tileState = memory.reserve(EMULATION_BYTES);
const emulated = (a: X64): TileUnit => emulatedTiles(a, memory.baseAddress + tileState);

const onVectors =
  (dtype: X64InputDType) =>
  (format: ProductFormat, transposition: Transposition): ScaledBlockMultiplier => {
    const core = scaledCore(format, format, dtype);
    return createScaledMultiplierOver(core, [format, format], transposition, context);
  };
const onTiles =
  (unit: ((a: X64) => TileUnit) | null) =>
  (format: ProductFormat, transposition: Transposition): ScaledBlockMultiplier =>
    createScaledTileMultiplier([format, format], transposition, unit, context);

/** Every core, and why this processor cannot run it. */
const CORES: readonly {
  readonly name: string;
  readonly refusal: string;
  readonly create: (format: ProductFormat, transposition: Transposition) => ScaledBlockMultiplier;
}[] = [
  { name: "f32", refusal: reason, create: onVectors("f32") },
  { name: "bf16", refusal: noBf16, create: onVectors("bf16") },
  { name: "tiles", refusal: noTiles, create: onTiles(null) },
  { name: "emulated tiles", refusal: noTables, create: onTiles(emulated) },
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

/** The same block with operands of another orientation: tiles of depth alone, strides of 7 more. */
function turnedBlock(
  transposition: Transposition,
  [m, n, k]: readonly [m: number, n: number, k: number],
  tileDepth: number,
): ScaledBlock {
  const placeOf = (alongRows: boolean, lanes: number): Omit<ScaledPlace, "codesOffset"> => {
    const columns = alongRows ? k : lanes;
    const [tileRows, tileColumns] = alongRows ? [1, tileDepth] : [tileDepth, 1];
    const place = { firstRow: 0, firstColumn: 0, tileRows, tileColumns, rowStride: columns + 7 };
    return { ...place, scalesOffset: aScales, scaleRowStride: Math.ceil(columns / tileColumns) };
  };
  return {
    ...blockOf(m, n, k, tileDepth),
    a: { ...placeOf(transposition !== "tn", m), codesOffset: aCodes },
    b: { ...placeOf(transposition === "nt", n), codesOffset: bCodes, scalesOffset: bScales },
    outRowStride: n + 3,
  };
}

for (const { name, refusal, create } of CORES) {
  describe(`x64 scaled products in ${name}`, { skip: refusal || false }, () => {
    const multiplierOf = (format: ProductFormat): ScaledBlockMultiplier => create(format, "nt");

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

    it("multiplies operands of every orientation and ragged size as the reference does", () => {
      const seed = Date.now() % 2 ** 31;
      const random = new Random(seed, "orientations");
      for (const transposition of TRANSPOSITIONS) {
        const multiply = create("e4m3", transposition);
        const reference = createReferenceScaledMultiplier(`${transposition}.e4m3.e4m3`, context);
        for (const size of [
          [1, 1, 1],
          [16, 33, 40],
          [33, 64, 96],
          [64, 32, 256],
          [79, 100, 333],
        ] as const) {
          const [m, n, k] = size;
          const block = turnedBlock(transposition, size, 64);
          for (const offset of [aCodes, bCodes]) {
            const end = offset + (Math.max(m, n) + 7 + k) * (Math.max(m, n, k) + 7);
            for (let at = offset; at < end; at++) memory.u8[at] = toE4m3(random.normal());
          }
          for (let at = 0; at < k * (m + n); at++) {
            memory.f32[aScales / 4 + at] = 1 + random.uniform();
            memory.f32[bScales / 4 + at] = 1 + random.uniform();
          }
          const results = [reference, multiply].map((run) => {
            memory.f32.fill(0.5, out / 4, out / 4 + (m + 1) * (n + 3));
            run({ ...block, accumulate: true });
            return memory.f32.slice(out / 4, out / 4 + (m + 1) * (n + 3));
          });
          const [expected, got] = results as [Float32Array, Float32Array];
          const largest = expected.reduce((most, value) => Math.max(most, Math.abs(value)), 0);
          for (const [at, value] of expected.entries()) {
            const isOutside = at % (n + 3) >= n || at >= m * (n + 3);
            const most = isOutside ? 0 : largest * 2e-6;
            const text = `seed ${seed}: ${transposition} ${size} at ${at}`;
            assert.ok(Math.abs(value - got[at]!) <= most, text);
          }
        }
      }
    });

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
