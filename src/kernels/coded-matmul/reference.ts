/** @file Products of coded weights, plainly: three loops, f64 sums. The oracle. */
import { floorDiv } from "../../base/integers.ts";
import type { KernelBody, ThreadContext } from "../../device/program.ts";
import { fromBf16 } from "../../numerics/bf16.ts";
import { codedMatmulBody } from "./body.ts";
import type { CodedBlock, CodedBlockMultiplier } from "./coded-block.ts";
import { codeAt, groupAt } from "./codes.ts";
import { parseCodedVariant } from "./contract.ts";

export function createReferenceCodedMatmul(variant: string, context: ThreadContext): KernelBody {
  return codedMatmulBody(createReferenceCodedMultiplier(variant, context), variant, context);
}

/** The block core: each column's values, then its product with every row. */
export function createReferenceCodedMultiplier(
  variant: string,
  { memory }: ThreadContext,
): CodedBlockMultiplier {
  const { format, hasOffsets } = parseCodedVariant(variant);
  const columnValues = (block: CodedBlock, column: number): Float64Array =>
    Float64Array.from({ length: block.k }, (_, k) => {
      const group = floorDiv(k, block.groupSize);
      const { scale, offset } = groupAt(memory, format, hasOffsets, block, { column, group });
      return scale * (codeAt(memory, format, block, column, k) + offset);
    });
  return (block) => {
    const { m, n, k, aOffset, aRowStride, outOffset, outRowStride, accumulate } = block;
    for (let column = 0; column < n; column++) {
      const values = columnValues(block, column);
      for (let row = 0; row < m; row++) {
        const a = aOffset / 2 + row * aRowStride;
        let sum = 0;
        for (let depth = 0; depth < k; depth++) {
          sum += fromBf16(memory.u16[a + depth]!) * values[depth]!;
        }
        const at = outOffset / 4 + row * outRowStride + column;
        memory.f32[at] = accumulate ? memory.f32[at]! + sum : sum;
      }
    }
  };
}
