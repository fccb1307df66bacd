/**
 * @file From a row program to kernel implementations: machine code and WebAssembly.
 *
 * Both generated forms read the launch's slots from the thread's argument block, which lies in the
 * device's memory. They compute in f32; variants in f64, which gradient checks use, run on the
 * reference alone.
 */

import { defined } from "../base/errors.ts";
import { lowerToWasm } from "../codegen/vector/lower-wasm.ts";
import { lowerToX64 } from "../codegen/vector/lower-x64.ts";
import { type RowProgram, slotNames } from "../codegen/vector/program.ts";
import { hasRelaxedSimd, hasSharedSimd } from "../codegen/wasm/features.ts";
import { instantiate } from "../codegen/wasm/module.ts";
import type { ThreadContext } from "../device/program.ts";
import type { KernelImplementation } from "./kernel.ts";

/** The program of a variant; called for variants in f32 and bf16 only. */
export type RowProgramOf = (variant: string) => RowProgram;

/** The generated implementations of a row kernel, best first; its reference goes behind them. */
export function rowImplementations(program: RowProgramOf): KernelImplementation[] {
  return [x64Rows(program), wasmRows(program)];
}

function refuseDouble(variant: string): string | null {
  return variant.includes("f64") ? "f64 runs on the reference alone" : null;
}

function x64Rows(program: RowProgramOf): KernelImplementation {
  return {
    target: "x64",
    refusal: (variant, { native }) => {
      if (native === null) return "native code is off or impossible here";
      if (!native.features.avx512) return "the processor has no AVX-512";
      return refuseDouble(variant);
    },
    create: (variant, context) => {
      const native = defined(context.native, "native runtime");
      const recorded = program(variant);
      const hasBf16 = native.features.avx512Bf16;
      const kernel = native.load(lowerToX64(recorded, { hasBf16 }));
      const passSlots = slotPasser(context, recorded);
      const { memory, argumentBlock } = context;
      const slotsAddress = memory.baseAddress + argumentBlock.byteOffset;
      return (slots, firstTask, endTask) => {
        passSlots(slots);
        kernel.call(slotsAddress, firstTask, endTask, memory.baseAddress);
      };
    },
  };
}

function wasmRows(program: RowProgramOf): KernelImplementation {
  return {
    target: "wasm",
    refusal: (variant) =>
      hasSharedSimd() ? refuseDouble(variant) : "WebAssembly here has no SIMD on shared memory",
    create: (variant, context) => {
      const options = { relaxedSimd: hasRelaxedSimd() };
      const recorded = program(variant);
      const bytes = lowerToWasm(recorded, options);
      const passSlots = slotPasser(context, recorded);
      const { run } = instantiate<"run">(bytes, context.memory.wasm);
      const { byteOffset } = context.argumentBlock;
      return (slots, firstTask, endTask) => {
        passSlots(slots);
        run(byteOffset, firstTask, endTask);
      };
    },
  };
}

/**
 * Slots reach generated code through the device's memory. A view of it made once stays good: memory
 * grows in place, and the argument block does not move.
 */
function slotPasser(
  { memory, argumentBlock }: ThreadContext,
  program: RowProgram,
): (slots: Float64Array) => void {
  const count = slotNames(program).length;
  const block = new Float64Array(memory.f64.buffer, argumentBlock.byteOffset, count);
  return (slots) => {
    for (let index = 0; index < count; index++) block[index] = slots[index]!;
  };
}
