/** @file Row softmax over a limited number of columns, and its gradient, as row programs. */
import { exp2OfNonPositive, LOG2_E } from "../../codegen/vector/math.ts";
import type { RowProgram } from "../../codegen/vector/program.ts";
import { rowProgram } from "../../codegen/vector/recorder.ts";
import { perRow, row } from "../row-operands.ts";

export function softmaxCausalProgram(variant: string): RowProgram {
  return rowProgram({
    name: `softmaxCausal/${variant}`,
    operands: { x: row(), limits: perRow("i32"), out: row() },
    scalars: ["scale"],
    body(v, { x, limits, out }, { scale }) {
      // Powers of two: the factor log₂ e of every exponent goes into the scale.
      const scale2 = v.mul(scale, v.float(LOG2_E));
      const { top } = v.columns(() => ({ top: v.rowMax(v.mul(v.load(x), scale2)) }), {
        end: limits,
      });
      const { total } = v.columns(
        () => {
          // Not fused: the product is the one that gave the maximum, and no exponent is above 0.
          const term = exp2OfNonPositive(v, v.sub(v.mul(v.load(x), scale2), top));
          v.store(out, term);
          return { total: v.sum(term) };
        },
        { end: limits, ahead: [x, out] },
      );
      const inverse = v.div(v.float(1), total);
      v.columns(() => v.store(out, v.mul(v.load(out), inverse)), { end: limits });
      v.columns(() => v.store(out, v.float(0)), { start: limits });
    },
  });
}

export function softmaxBackwardProgram(variant: string): RowProgram {
  return rowProgram({
    name: `softmaxBackward/${variant}`,
    operands: { p: row(), dP: row() },
    scalars: ["scale"],
    body(v, { p, dP }, { scale }) {
      const { mean } = v.columns(() => ({ mean: v.sumOfProducts(v.load(p), v.load(dP)) }));
      v.columns(
        () => {
          const centred = v.sub(v.load(dP), mean);
          v.store(dP, v.mul(v.mul(v.load(p), centred), scale));
        },
        { ahead: [p, dP] },
      );
    },
  });
}
