/**
 * @file What this engine's WebAssembly can do, found by validating tiny modules.
 */
import { WasmFunction } from "./function.ts";
import { assembleModule } from "./module.ts";

/** Whether `f32x4.relaxed_madd` (fused where the processor can) is accepted. */
export function hasRelaxedSimd(): boolean {
  const zero = [0, 0, 0, 0] as const;
  const probe = new WasmFunction([]);
  probe.v128Const(zero).v128Const(zero).v128Const(zero).op("f32x4.relaxed_madd").op("drop");
  return WebAssembly.validate(assembleModule({ probe }));
}

/** Whether 128-bit vectors and shared memory are accepted: what every generated kernel needs. */
export function hasSharedSimd(): boolean {
  const probe = new WasmFunction([]);
  probe.v128Const([0, 0, 0, 0]).op("drop");
  return WebAssembly.validate(assembleModule({ probe }));
}
