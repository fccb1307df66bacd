/** @file The row programs inside latent attention: a segment's softmax, and joining segments. */
import { exp2OfNonPositive, LOG2_E } from "../../codegen/vector/math.ts";
import type { RowProgram } from "../../codegen/vector/program.ts";
import { rowProgram } from "../../codegen/vector/recorder.ts";
import { perRow, row } from "../row-operands.ts";

/**
 * scores ← exp(scale · scores − top), exactly 0 from `limits` on; `top` is the row's largest scaled
 * score and `total` the sum of what was written.
 */
export function exponentialsProgram(): RowProgram {
  return rowProgram({
    name: "latentExponentials",
    operands: { scores: row(), limits: perRow("i32"), top: perRow(), total: perRow() },
    scalars: ["scale"],
    body(v, { scores, limits, top, total }, { scale }) {
      const { most } = v.columns(() => ({ most: v.rowMax(v.mul(v.load(scores), scale)) }), {
        end: limits,
      });
      const { sum } = v.columns(
        () => {
          // Not fused: the product is the one that gave the maximum, so no exponent is above 0.
          const exponent = v.sub(v.mul(v.load(scores), scale), most);
          const term = exp2OfNonPositive(v, v.mul(exponent, v.float(LOG2_E)));
          v.store(scores, term);
          return { sum: v.sum(term) };
        },
        { end: limits },
      );
      v.columns(() => v.store(scores, v.float(0)), { start: limits });
      v.storePerRow(top, most);
      v.storePerRow(total, sum);
    },
  });
}

/** joined ← keep · joined + add · part */
export function joinProgram(): RowProgram {
  return rowProgram({
    name: "latentJoin",
    operands: { joined: row(), part: row(), keep: perRow(), add: perRow() },
    scalars: [],
    body(v, { joined, part, keep, add }) {
      const [k, a] = [v.loadPerRow(keep), v.loadPerRow(add)];
      v.columns(() => v.store(joined, v.fma(v.load(joined), k, v.mul(v.load(part), a))));
    },
  });
}

/** x ← factor · x */
export function scaleProgram(): RowProgram {
  return rowProgram({
    name: "latentScale",
    operands: { x: row(), factor: perRow() },
    scalars: [],
    body(v, { x, factor }) {
      const f = v.loadPerRow(factor);
      v.columns(() => v.store(x, v.mul(v.load(x), f)));
    },
  });
}
