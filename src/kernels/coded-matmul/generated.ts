/** @file Products of coded weights for every target, best first. */
import type { KernelImplementation } from "../kernel.ts";
import { createWasmMultiplier, wasmMultiplierRefusal } from "../matmul/wasm.ts";
import { codedMatmulBody } from "./body.ts";
import { createPortableCodedMultiplier } from "./portable.ts";
import { createX64CodedMultiplier, x64CodedRefusal } from "./x64.ts";

export const CODED_MATMUL_IMPLEMENTATIONS: readonly KernelImplementation[] = [
  {
    target: "x64",
    refusal: (_variant, context) => x64CodedRefusal(context),
    create: (variant, context) =>
      codedMatmulBody(createX64CodedMultiplier(variant, context), variant, context),
  },
  {
    target: "wasm",
    refusal: (_variant, context) => wasmMultiplierRefusal("nt", "f32", context),
    create: (variant, context) => {
      const multiply = createPortableCodedMultiplier(variant, context, (scratch) =>
        createWasmMultiplier("nt", "f32", context, scratch),
      );
      return codedMatmulBody(multiply, variant, context);
    },
  },
];
