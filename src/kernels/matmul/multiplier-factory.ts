/** @file The targets' block cores behind one interface, and the matrix product over any of them. */
import { assert } from "../../base/errors.ts";
import type { Span, ThreadContext } from "../../device/program.ts";
import { DTYPE_BYTES } from "../../tensor/dtype.ts";
import type { KernelImplementation, KernelTarget } from "../kernel.ts";
import type { BlockMultiplier, Transposition } from "./block-multiplier.ts";
import { matmulBody } from "./body.ts";
import type { MatmulDType } from "./contract.ts";
import { parseVariant } from "./reference.ts";
import { createWasmMultiplier, wasmMultiplierRefusal } from "./wasm.ts";
import { createX64Multiplier, x64MultiplierRefusal } from "./x64.ts";

/** Operand dtypes that generated cores multiply. */
export type GeneratedDType = Exclude<MatmulDType, "f64">;

/** Makes block cores of one target. */
export interface MultiplierFactory {
  readonly target: KernelTarget;
  /** null if it can multiply here; otherwise the reason. */
  refusal(transposition: Transposition, dtype: MatmulDType, context: ThreadContext): string | null;
  create(
    transposition: Transposition,
    dtype: GeneratedDType,
    context: ThreadContext,
    scratch: Span,
  ): BlockMultiplier;
}

const X64_MULTIPLIERS: MultiplierFactory = {
  target: "x64",
  refusal: x64MultiplierRefusal,
  create: createX64Multiplier,
};

const WASM_MULTIPLIERS: MultiplierFactory = {
  target: "wasm",
  refusal: wasmMultiplierRefusal,
  create: createWasmMultiplier,
};

/** All targets, best first. */
export const MULTIPLIERS: readonly MultiplierFactory[] = [X64_MULTIPLIERS, WASM_MULTIPLIERS];

/** The multiplier of a variant such as "nt.bf16", with all of the thread's scratch. */
export function createVariant(
  factory: MultiplierFactory,
  variant: string,
  context: ThreadContext,
): { multiply: BlockMultiplier; transposition: Transposition; inputBytes: number } {
  const { transposition, dtype } = parseVariant(variant);
  assert(dtype !== "f64", `${factory.target} has no products in f64`);
  const multiply = factory.create(transposition, dtype, context, context.scratch);
  return { multiply, transposition, inputBytes: DTYPE_BYTES[dtype] };
}

/** Why a factory cannot run a variant here; null if it can. */
export function refuseVariant(
  factory: MultiplierFactory,
  variant: string,
  context: ThreadContext,
): string | null {
  const { transposition, dtype } = parseVariant(variant);
  return factory.refusal(transposition, dtype, context);
}

/** `matmul` over a target's cores. */
export function matmulOver(factory: MultiplierFactory): KernelImplementation {
  return {
    target: factory.target,
    refusal: (variant, context) => refuseVariant(factory, variant, context),
    create: (variant, context) => {
      const { multiply, transposition, inputBytes } = createVariant(factory, variant, context);
      return matmulBody(multiply, transposition, inputBytes);
    },
  };
}
