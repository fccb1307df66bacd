/** @file Expert products of scaled operands over the reference block core. */
import type { KernelBody, ThreadContext } from "../../device/program.ts";
import { createReferenceScaledMultiplier, parseScaledVariant } from "../scaled-matmul/reference.ts";
import { groupedScaledMatmulBody } from "./body.ts";

export function createReferenceGroupedScaledMatmul(
  variant: string,
  context: ThreadContext,
): KernelBody {
  const { transposition } = parseScaledVariant(variant);
  const multiply = createReferenceScaledMultiplier(variant, context);
  return groupedScaledMatmulBody(multiply, transposition, context);
}
