/** @file The WebAssembly block core through the suite of all multipliers. */
import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { WasmFunction } from "../../codegen/wasm/function.ts";
import { assembleModule, instantiate } from "../../codegen/wasm/module.ts";
import { CpuMemory } from "../../device/cpu/memory.ts";
import type { ThreadContext } from "../../device/program.ts";
import { TRANSPOSITIONS } from "./block-multiplier.ts";
import { testMultiplier } from "./multiplier-test-support.ts";
import { createWasmMultiplier, wasmMultiplierRefusal } from "./wasm.ts";
import { assembleMatmulCore } from "./wasm-core.ts";

const memory = CpuMemory.create(null);
const span = (byteLength: number) => ({ byteOffset: memory.reserve(byteLength), byteLength });
const context: ThreadContext = {
  memory,
  threadIndex: 0,
  scratch: span(2 ** 20),
  argumentBlock: span(512),
  native: null,
};

for (const dtype of ["f32", "bf16"] as const) {
  describe(`products in WebAssembly, ${dtype}`, () => {
    for (const transposition of TRANSPOSITIONS) {
      testMultiplier({
        ...{ name: transposition, transposition, dtype, memory },
        refusal: wasmMultiplierRefusal(transposition, dtype, context) ?? "",
        make: () => {
          // What an earlier kernel may have left in the scratch: here, NaN everywhere.
          const { byteOffset, byteLength } = context.scratch;
          memory.u8.fill(0xff, byteOffset, byteOffset + byteLength);
          return createWasmMultiplier(transposition, dtype, context, context.scratch);
        },
      });
    }
  });
}

test("without relaxed SIMD the core is a valid module too", () => {
  for (const dtype of ["f32", "bf16"] as const) {
    assert.ok(WebAssembly.validate(assembleMatmulCore({ dtype, relaxedSimd: false })));
  }
});

test("a read beyond the memory traps: the suite's tests of borders would see one", () => {
  const peek = new WasmFunction(["i32"]);
  peek.get(0).memory("v128.load").op("drop");
  const { peek: call } = instantiate<"peek">(assembleModule({ peek }), memory.wasm);
  call(memory.byteLength - 16);
  assert.throws(() => call(memory.byteLength - 15), /out of bounds/);
});
