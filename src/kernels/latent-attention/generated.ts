/** @file Latent attention over a target's products and row kernels; half of the scratch each. */
import { defined } from "../../base/errors.ts";
import type { RowProgram } from "../../codegen/vector/program.ts";
import type { KernelBody, ThreadContext } from "../../device/program.ts";
import { gatherRowsProgram } from "../gather/program.ts";
import type { KernelImplementation } from "../kernel.ts";
import { MULTIPLIERS, type MultiplierFactory } from "../matmul/multiplier-factory.ts";
import { rowImplementations } from "../row-kernel.ts";
import { latentAttentionBody } from "./body.ts";
import { exponentialsProgram, joinProgram, scaleProgram } from "./programs.ts";
import { latentAttentionOverTiles } from "./x64-tiled.ts";

/** Best first. */
export const LATENT_ATTENTION_IMPLEMENTATIONS: readonly KernelImplementation[] =
  MULTIPLIERS.flatMap((factory) => {
    const over = latentAttentionOver(factory);
    return factory.target === "x64" ? [latentAttentionOverTiles(over), over] : [over];
  });

function latentAttentionOver(factory: MultiplierFactory): KernelImplementation {
  return {
    target: factory.target,
    refusal: (variant, context) => {
      if (variant === "f64") return "attention in f64 runs on the reference alone";
      return factory.refusal("nn", "f32", context) ?? factory.refusal("nt", "f32", context);
    },
    create: (variant, context) => {
      const { byteOffset, byteLength } = context.scratch;
      const half = byteLength / 2;
      const products = { byteOffset, byteLength: half };
      const parts = {
        nn: factory.create("nn", "f32", context, products),
        nt: factory.create("nt", "f32", context, products),
        exponentials: bodyOf(factory, context, exponentialsProgram()),
        join: bodyOf(factory, context, joinProgram()),
        scale: bodyOf(factory, context, scaleProgram()),
        gatherLatents: bodyOf(factory, context, gatherRowsProgram(`${variant}.f32`)),
        gatherKeys: bodyOf(factory, context, gatherRowsProgram("f32.f32")),
      };
      return latentAttentionBody(parts, context, {
        byteOffset: byteOffset + half,
        byteLength: half,
      });
    },
  };
}

function bodyOf(
  { target }: MultiplierFactory,
  context: ThreadContext,
  program: RowProgram,
): KernelBody {
  const own = rowImplementations(() => program).find((each) => each.target === target);
  return defined(own, `${program.name} for ${target}`).create("f32", context);
}
