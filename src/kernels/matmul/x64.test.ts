/**
 * @file Every x64 core through the suite of all multipliers; AMX also through emulated tiles, so
 * that its kernel is tested on processors that have none.
 */
import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { Random } from "../../base/random.ts";
import type { ThreadContext } from "../../device/program.ts";
import { nativeThread } from "../native-thread-test-support.ts";
import { type BlockMultiplier, TRANSPOSITIONS, type Transposition } from "./block-multiplier.ts";
import { testMultiplier } from "./multiplier-test-support.ts";
import {
  chooseCore,
  createMultiplierOver,
  createX64Multiplier,
  x64MultiplierRefusal,
} from "./x64.ts";
import {
  AMX_CORE,
  BF16_CORE,
  F32_CORE,
  tileCore,
  WIDENING_CORE,
  type X64Core,
} from "./x64-core.ts";
import type { X64InputDType } from "./x64-pack.ts";
import {
  EMULATION_BYTES,
  EMULATION_CONFIGURATION,
  EMULATION_RELEASES,
  emulatedTiles,
} from "./x64-tiles-test-support.ts";

const { context, reason } = nativeThread(8 * 2 ** 20);
const { memory, native } = context;
const tileState = memory.reserve(EMULATION_BYTES);
const EMULATED_CORE = tileCore((a) => emulatedTiles(a, memory.baseAddress + tileState));

const features = native?.features;
const noBf16 = features?.avx512Bf16 ? "" : reason || "this processor has no AVX512_BF16";
const noTiles = features?.amxBf16 ? "" : reason || "this processor has no AMX";
const CORES: readonly { core: X64Core; name: string; refusal: string }[] = [
  { core: F32_CORE, name: "f32", refusal: reason },
  { core: WIDENING_CORE, name: "bf16 widened to f32", refusal: reason },
  { core: BF16_CORE, name: "bf16 by vdpbf16ps", refusal: noBf16 },
  { core: AMX_CORE, name: "bf16 by AMX", refusal: noTiles },
  { core: EMULATED_CORE, name: "bf16 by emulated AMX", refusal: reason },
];

/** What an earlier kernel may have left in the scratch: here, NaN everywhere. */
function spoilScratch(): void {
  const { byteOffset, byteLength } = context.scratch;
  memory.u8.fill(0xff, byteOffset, byteOffset + byteLength);
}

for (const { core, name, refusal } of CORES) {
  describe(`x64 products in ${name}`, () => {
    const make = (transposition: Transposition): BlockMultiplier => {
      spoilScratch();
      return createMultiplierOver(core, transposition, context, context.scratch);
    };
    for (const transposition of TRANSPOSITIONS) {
      testMultiplier({
        name: transposition,
        transposition,
        dtype: core.aFormat.source as X64InputDType,
        memory,
        refusal,
        make: () => make(transposition),
      });
    }
  });
}

describe("the x64 multiplier", () => {
  it("is refused with the reason", () => {
    const features = { avx512: true, avx512Bf16: false, avx512Vbmi: false, amxBf16: false };
    const load = (): never => assert.fail("nothing may be loaded");
    const runtime = { features, load, addressOf: () => 0, useHugePages: () => {} };
    const native = { ...context, native: runtime };
    const refusal = (dtype: string, of: ThreadContext): string | null =>
      x64MultiplierRefusal("nt", dtype, of);
    assert.match(refusal("f32", { ...context, native: null }) ?? "", /native code is off/);
    assert.equal(refusal("f32", native), null);
    assert.equal(refusal("bf16", native), null);
    assert.match(refusal("f64", native) ?? "", /f64/);
  });

  it("multiplies bf16 by the best that the processor has", () => {
    const core = (avx512Bf16: boolean, amxBf16: boolean): X64Core | null =>
      chooseCore("bf16", { avx512: true, avx512Bf16, avx512Vbmi: false, amxBf16 });
    assert.equal(core(true, true), AMX_CORE);
    assert.equal(core(false, true), AMX_CORE);
    assert.equal(core(true, false), BF16_CORE);
    assert.equal(core(false, false), WIDENING_CORE);
  });

  it("configures eight whole tiles and releases them after each block", {
    skip: reason || false,
  }, () => {
    const multiply = createMultiplierOver(EMULATED_CORE, "nt", context, context.scratch);
    const [a, b, out] = [memory.reserve(4096), memory.reserve(4096), memory.reserve(4096)];
    const releases = (): number => memory.i32[(tileState + EMULATION_RELEASES) / 4] ?? 0;
    const before = releases();
    multiply(a, 16, b, 16, out, 16, 5, 7, 16, false);
    assert.equal(releases(), before + 1);
    multiply(a, 16, b, 16, out, 16, 5, 16, 16, false);
    assert.equal(releases(), before + 2);
    const expected = new Uint8Array(64);
    expected[0] = 1;
    for (let tile = 0; tile < 8; tile++) {
      new DataView(expected.buffer).setUint16(16 + 2 * tile, 64, true);
      expected[48 + tile] = 16;
    }
    const at = tileState + EMULATION_CONFIGURATION;
    assert.deepEqual(memory.u8.slice(at, at + 64), expected);
  });

  it("has the bits of tiles where they are emulated, whatever the operands' bits", {
    skip: noTiles || false,
  }, () => {
    const [m, n, k] = [37, 65, 2100];
    const random = new Random(3, "bits of bf16");
    const [a, b, out] = [m * k * 2, n * k * 2, m * n * 4].map((bytes) => memory.reserve(bytes)) as [
      number,
      number,
      number,
    ];
    // A sign, an exponent of `least` or a little more (seldom: any), a fraction.
    const fill = (at: number, count: number, least: number): void => {
      for (let i = 0; i < count; i++) {
        const exponent = random.below(500) === 0 ? random.below(256) : least + random.below(8);
        memory.u16[at / 2 + i] =
          random.below(2) * 2 ** 15 + exponent * 2 ** 7 + random.below(2 ** 7);
      }
    };
    // Numbers, so that all NaN are alike.
    const outOf = (core: X64Core): number[] => {
      createMultiplierOver(core, "nt", context, context.scratch)(
        a,
        k,
        b,
        k,
        out,
        n,
        m,
        n,
        k,
        false,
      );
      return Array.from(memory.f32.subarray(out / 4, out / 4 + m * n));
    };
    // Products near one, and near the least normal number.
    for (const least of [120, 60]) {
      fill(a, m * k, least);
      fill(b, n * k, least);
      assert.deepEqual(outOf(EMULATED_CORE), outOf(AMX_CORE), `exponents from ${least}`);
    }
  });

  it("needs its scratch", { skip: reason || false }, () => {
    const small = { byteOffset: context.scratch.byteOffset, byteLength: 2 ** 20 };
    assert.throws(() => createX64Multiplier("nt", "f32", context, small), /bytes of scratch/);
  });
});
