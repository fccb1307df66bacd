/**
 * @file Cross entropy and its gradient as a row program; operands and scalars as in the contract.
 *
 * A target that is no column reads and writes nothing.
 */
import { exp2OfNonPositive, LOG2_E, log } from "../../codegen/vector/math.ts";
import type { RowProgram, Value } from "../../codegen/vector/program.ts";
import { rowProgram } from "../../codegen/vector/recorder.ts";
import { perRow, row } from "../row-operands.ts";

/**
 * "f32.grad" overwrites the logits by the gradient, "f32.bf16Grad" writes it elsewhere, "f32.loss"
 * leaves them.
 */
export function crossEntropyProgram(variant: string): RowProgram {
  const withGradient = !variant.endsWith(".loss");
  const isRounded = variant.endsWith(".bf16Grad");
  return rowProgram({
    name: `crossEntropy/${variant}`,
    operands: {
      ...{ logits: row(), targets: perRow("i32"), loss: perRow(), logSumExp: perRow() },
      ...(isRounded ? { gradient: row("bf16") } : {}),
    },
    scalars: ["gradScale", "zLoss"],
    body(v, { logits, targets, loss, logSumExp, gradient }, { gradScale, zLoss }) {
      const target = v.loadPerRow(targets);
      // All ones unless the target is −1: an ignored row gives exact zeros, whatever its logits.
      const counted = v.xor(v.shiftRightSigned(target, 31), v.integer(-1));
      const picked = v.loadElement(logits, targets);
      const { top } = v.columns(() => ({ top: v.rowMax(v.load(logits)) }));
      const { total } = v.columns(
        () => {
          const lowered = v.sub(v.load(logits), top);
          const term = exp2OfNonPositive(v, v.mul(lowered, v.float(LOG2_E)));
          if (withGradient) v.store(logits, term);
          return { total: v.sum(term) };
        },
        { ahead: [logits] },
      );
      const sumExp = v.add(top, log(v, total));
      const penalty = v.mul(zLoss, v.mul(sumExp, sumExp));
      v.storePerRow(logSumExp, sumExp);
      v.storePerRow(loss, v.and(v.add(v.sub(sumExp, picked), penalty), counted));
      if (!withGradient) return;
      // p·(1 + 2·zLoss·logSumExp)·gradScale = term · factor
      const twice = v.mul(zLoss, v.add(sumExp, sumExp));
      const factor = v.div(v.fma(gradScale, twice, gradScale), total);
      const share = (): Value => v.and(v.mul(v.load(logits), factor), counted);
      if (gradient !== undefined) {
        v.columns(() => {
          const value = share();
          const isTarget = v.integerEqual(v.columnIndex(), target);
          v.store(gradient, v.select(isTarget, v.sub(value, gradScale), value));
        });
        return;
      }
      v.columns(() => v.store(logits, share()));
      v.storeElement(logits, targets, v.sub(v.loadElement(logits, targets), gradScale));
    },
  });
}
