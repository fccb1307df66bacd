/** @file Attention over a target's products and row kernels; half of the thread's scratch each. */
import { defined } from "../../base/errors.ts";
import type { KernelBody, Span, ThreadContext } from "../../device/program.ts";
import type { KernelImplementation } from "../kernel.ts";
import { TRANSPOSITIONS } from "../matmul/block-multiplier.ts";
import type { MultiplierFactory } from "../matmul/multiplier-factory.ts";
import { rowImplementations } from "../row-kernel.ts";
import { ROW_PROGRAMS, type RowKernelName } from "../row-programs.ts";
import { type AttentionParts, attentionBackwardBody, attentionBody } from "./body.ts";

/** causalAttention ("forward") or causalAttentionBackward over a target's parts. */
export function attentionOver(
  factory: MultiplierFactory,
  direction: "forward" | "backward",
): KernelImplementation {
  const makeBody = direction === "forward" ? attentionBody : attentionBackwardBody;
  return {
    target: factory.target,
    refusal: (variant, context) => {
      if (variant !== "f32") return `attention in ${variant} runs on the reference alone`;
      const reasons = TRANSPOSITIONS.map((each) => factory.refusal(each, "f32", context));
      return reasons.find((reason) => reason !== null) ?? null;
    },
    create: (_variant, context) => {
      const half = context.scratch.byteLength / 2;
      const products: Span = { byteOffset: context.scratch.byteOffset, byteLength: half };
      const scores: Span = { byteOffset: products.byteOffset + half, byteLength: half };
      return makeBody(createParts(factory, context, products), context, scores);
    },
  };
}

function createParts(
  factory: MultiplierFactory,
  context: ThreadContext,
  scratch: Span,
): AttentionParts {
  const rowBody = (name: RowKernelName): KernelBody => {
    const implementations = rowImplementations(ROW_PROGRAMS[name]);
    const own = implementations.find(({ target }) => target === factory.target);
    return defined(own, `${name} for ${factory.target}`).create("f32", context);
  };
  return {
    products: {
      nn: factory.create("nn", "f32", context, scratch),
      nt: factory.create("nt", "f32", context, scratch),
      tn: factory.create("tn", "f32", context, scratch),
    },
    softmax: rowBody("softmaxCausal"),
    softmaxBackward: rowBody("softmaxBackward"),
  };
}
