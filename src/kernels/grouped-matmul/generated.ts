/** @file Expert products over a target's block cores. */
import type { KernelImplementation } from "../kernel.ts";
import {
  createVariant,
  type MultiplierFactory,
  refuseVariant,
} from "../matmul/multiplier-factory.ts";
import { groupedMatmulBody } from "./body.ts";

/** `groupedMatmul` over a target's cores. */
export function groupedMatmulOver(factory: MultiplierFactory): KernelImplementation {
  return {
    target: factory.target,
    refusal: (variant, context) => refuseVariant(factory, variant, context),
    create: (variant, context) => {
      const { multiply, transposition, inputBytes } = createVariant(factory, variant, context);
      return groupedMatmulBody(multiply, transposition, inputBytes, context);
    },
  };
}
