/** @file Attention over a target's products and row kernels; half of the thread's scratch each. */
import { defined } from "../../base/errors.ts";
import type { KernelBody, Span, ThreadContext } from "../../device/program.ts";
import type { KernelImplementation } from "../kernel.ts";
import { TRANSPOSITIONS } from "../matmul/block-multiplier.ts";
import {
  type GeneratedDType,
  MULTIPLIERS,
  type MultiplierFactory,
} from "../matmul/multiplier-factory.ts";
import { type RowProgramOf, rowImplementations } from "../row-kernel.ts";
import { ROW_PROGRAMS } from "../row-programs.ts";
import { type AttentionParts, attentionBackwardBody, attentionBody } from "./body.ts";
import { type NarrowAttentionParts, narrowAttentionBody } from "./narrow-body.ts";
import { attentionWeightsProgram, scaleRowsProgram, scoreGradientsProgram } from "./program.ts";
import { attentionOverTiles } from "./x64-tiled.ts";

/** Of causalAttention ("forward") or causalAttentionBackward; best first. */
export function attentionImplementations(
  direction: "forward" | "backward",
): readonly KernelImplementation[] {
  return MULTIPLIERS.flatMap((factory) => {
    const over = attentionOver(factory, direction);
    return factory.target === "x64" ? [attentionOverTiles(over, direction), over] : [over];
  });
}

/** causalAttention ("forward") or causalAttentionBackward over a target's parts. */
function attentionOver(
  factory: MultiplierFactory,
  direction: "forward" | "backward",
): KernelImplementation {
  const makeBody = direction === "forward" ? attentionBody : attentionBackwardBody;
  return {
    target: factory.target,
    refusal: (variant, context) => {
      if (variant === "f64") return "attention in f64 runs on the reference alone";
      const dtype = variant === "bf16" ? "bf16" : "f32";
      const reasons = TRANSPOSITIONS.map((each) => factory.refusal(each, dtype, context));
      return reasons.find((reason) => reason !== null) ?? null;
    },
    create: (variant, context) => {
      const half = context.scratch.byteLength / 2;
      const products: Span = { byteOffset: context.scratch.byteOffset, byteLength: half };
      const scores: Span = { byteOffset: products.byteOffset + half, byteLength: half };
      if (variant !== "bf16") {
        return makeBody(createParts(factory, context, products), context, scores);
      }
      const parts = createNarrowParts(factory, context, products);
      return narrowAttentionBody(parts, context, scores, direction);
    },
  };
}

function createParts(
  factory: MultiplierFactory,
  context: ThreadContext,
  scratch: Span,
): AttentionParts {
  return {
    products: createProducts(factory, "f32", context, scratch),
    softmax: rowBody(factory, ROW_PROGRAMS.softmaxCausal, "f32", context),
    softmaxBackward: rowBody(factory, ROW_PROGRAMS.softmaxBackward, "f32", context),
  };
}

/**
 * Whole tiles of 12 rows on vectors. AMX has what x64-tiled.ts leaves: it multiplies 32 rows as
 * fast as a few, and then what counts is that keys are packed for each block anew. Of 48, 64, 128
 * and 256, 128 is the fastest there (256 to 4096 keys, heads of 48 and 192; backward by a fifth).
 */
const QUERY_BLOCK = { vectors: 48, tiles: 128 } as const;

function createNarrowParts(
  factory: MultiplierFactory,
  context: ThreadContext,
  scratch: Span,
): NarrowAttentionParts {
  const hasTiles = factory.target === "x64" && context.native?.features.amxBf16 === true;
  return {
    products: createProducts(factory, "bf16", context, scratch),
    queryBlock: QUERY_BLOCK[hasTiles ? "tiles" : "vectors"],
    cast: rowBody(factory, ROW_PROGRAMS.castRows, "f32.bf16", context),
    weights: rowBody(factory, attentionWeightsProgram, "bf16", context),
    scoreGradients: rowBody(factory, scoreGradientsProgram, "bf16", context),
    scaleRows: rowBody(factory, () => scaleRowsProgram("f32"), "f32", context),
    scaleRowsToBf16: rowBody(factory, () => scaleRowsProgram("bf16"), "bf16", context),
  };
}

function createProducts(
  factory: MultiplierFactory,
  dtype: GeneratedDType,
  context: ThreadContext,
  scratch: Span,
): AttentionParts["products"] {
  return {
    nn: factory.create("nn", dtype, context, scratch),
    nt: factory.create("nt", dtype, context, scratch),
    tn: factory.create("tn", dtype, context, scratch),
  };
}

/** A row kernel of the factory's target. */
function rowBody(
  factory: MultiplierFactory,
  program: RowProgramOf,
  variant: string,
  context: ThreadContext,
): KernelBody {
  const implementations = rowImplementations(program);
  const own = implementations.find(({ target }) => target === factory.target);
  return defined(own, `row kernels for ${factory.target}`).create(variant, context);
}
