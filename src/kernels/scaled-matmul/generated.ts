/** @file Products of scaled operands over the targets' block cores, with groups and without. */
import type { KernelBody, ThreadContext } from "../../device/program.ts";
import { groupedScaledMatmulBody } from "../grouped-scaled-matmul/body.ts";
import type { KernelImplementation, KernelTarget } from "../kernel.ts";
import type { Transposition } from "../matmul/block-multiplier.ts";
import { createWasmMultiplier, wasmMultiplierRefusal } from "../matmul/wasm.ts";
import { scaledMatmulBody } from "./body.ts";
import type { ProductFormat } from "./contract.ts";
import { createPortableScaledMultiplier } from "./portable.ts";
import { parseScaledVariant } from "./reference.ts";
import type { ScaledBlockMultiplier } from "./scaled-block.ts";
import { createX64ScaledMultiplier, x64ScaledRefusal } from "./x64.ts";

interface ScaledFactory {
  readonly target: KernelTarget;
  /** null if it can multiply here; otherwise the reason. */
  readonly refusal: (transposition: Transposition, context: ThreadContext) => string | null;
  readonly create: (
    transposition: Transposition,
    formats: readonly [a: ProductFormat, b: ProductFormat],
    context: ThreadContext,
  ) => ScaledBlockMultiplier;
}

/** All targets, best first. */
const FACTORIES: readonly ScaledFactory[] = [
  {
    target: "x64",
    refusal: (_transposition, context) => x64ScaledRefusal(context),
    create: createX64ScaledMultiplier,
  },
  {
    target: "wasm",
    refusal: (transposition, context) => wasmMultiplierRefusal(transposition, "f32", context),
    create: (transposition, formats, context) =>
      createPortableScaledMultiplier(transposition, formats, context, (scratch) =>
        createWasmMultiplier(transposition, "f32", context, scratch),
      ),
  },
];

type MakeBody = (
  multiply: ScaledBlockMultiplier,
  transposition: Transposition,
  context: ThreadContext,
) => KernelBody;

/** A product over each target. The bit model of the tensor core is the reference's alone. */
function implementationsOf(makeBody: MakeBody): readonly KernelImplementation[] {
  return FACTORIES.map(({ target, refusal, create }) => ({
    target,
    refusal: (variant, context) => {
      const { isTensorCore, transposition } = parseScaledVariant(variant);
      return isTensorCore
        ? "the tensor core's sums are modelled by the reference alone"
        : refusal(transposition, context);
    },
    create: (variant, context) => {
      const { transposition, aFormat, bFormat } = parseScaledVariant(variant);
      return makeBody(create(transposition, [aFormat, bFormat], context), transposition, context);
    },
  }));
}

export const SCALED_MATMUL_IMPLEMENTATIONS: readonly KernelImplementation[] =
  implementationsOf(scaledMatmulBody);
export const GROUPED_SCALED_MATMUL_IMPLEMENTATIONS: readonly KernelImplementation[] =
  implementationsOf(groupedScaledMatmulBody);
