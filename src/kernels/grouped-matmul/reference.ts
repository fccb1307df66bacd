/** @file Expert products over the reference block core. */
import type { KernelBody, ThreadContext } from "../../device/program.ts";
import { DTYPE_BYTES } from "../../tensor/dtype.ts";
import { createReferenceMultiplier, parseVariant } from "../matmul/reference.ts";
import { groupedMatmulBody } from "./body.ts";

export function createReferenceGroupedMatmul(variant: string, context: ThreadContext): KernelBody {
  const { transposition, dtype } = parseVariant(variant);
  const multiply = createReferenceMultiplier(transposition, dtype, context);
  return groupedMatmulBody(multiply, transposition, DTYPE_BYTES[dtype], context);
}
