/**
 * @file Matrix product, plainly: three loops and an f64 sum. The oracle for every implementation.
 */
import { assert } from "../../base/errors.ts";
import type { KernelBody, ThreadContext } from "../../device/program.ts";
import type { DType } from "../../tensor/dtype.ts";
import { DTYPE_BYTES } from "../../tensor/dtype.ts";
import { elementsAt } from "../views.ts";
import type { BlockMultiplier, Transposition } from "./block-multiplier.ts";
import { matmulBody } from "./body.ts";
import { MATMUL_VARIANTS, type MatmulDType } from "./contract.ts";

/** "nt.bf16" taken apart. */
export function parseVariant(variant: string): {
  transposition: Transposition;
  dtype: MatmulDType;
} {
  const index = MATMUL_VARIANTS.indexOf(variant);
  const [transposition, dtype] = variant.split(".") as [Transposition, MatmulDType];
  assert(index >= 0, `unknown matmul variant ${variant}`);
  return { transposition, dtype };
}

/** The block core as three loops; sums in f64 from k = 0 upwards. */
export function createReferenceMultiplier(
  transposition: Transposition,
  dtype: MatmulDType,
  context: ThreadContext,
): BlockMultiplier {
  const outDType: DType = dtype === "f64" ? "f64" : "f32";
  const transposeA = transposition === "tn";
  const transposeB = transposition === "nt";
  return (aOffset, aStride, bOffset, bStride, outOffset, outStride, m, n, k, accumulate) => {
    const a = elementsAt(context.memory, dtype, aOffset);
    const b = elementsAt(context.memory, dtype, bOffset);
    const out = elementsAt(context.memory, outDType, outOffset);
    for (let row = 0; row < m; row++) {
      for (let column = 0; column < n; column++) {
        let sum = 0;
        for (let depth = 0; depth < k; depth++) {
          const left = a.get(transposeA ? depth * aStride + row : row * aStride + depth);
          const right = b.get(transposeB ? column * bStride + depth : depth * bStride + column);
          sum += left * right;
        }
        const at = row * outStride + column;
        out.set(at, accumulate ? out.get(at) + sum : sum);
      }
    }
  };
}

export function createReferenceMatmul(variant: string, context: ThreadContext): KernelBody {
  const { transposition, dtype } = parseVariant(variant);
  const multiply = createReferenceMultiplier(transposition, dtype, context);
  return matmulBody(multiply, transposition, DTYPE_BYTES[dtype]);
}
