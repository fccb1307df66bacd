/**
 * @file A linear layer without bias, and its gradients.
 *
 *     out_TN (=|+=) x_TK · W_NKᵀ
 *     dX_TK (=|+=) dOut_TN · W_NK          dW_NK += dOut_TNᵀ · x_TK  (queued)
 *
 *   x, dOut, W  plain in the compute type, or scaled FP8 (operand.ts); out, dX, dW in the float
 *   type
 *
 * Nothing is saved here: the caller caches or recomputes the input, and rounds the output's
 * gradient for both products. What the weight gradient reads must live until the queue has run.
 */
import type { FloatType } from "../tensor/dtype.ts";
import type { Tensor } from "../tensor/tensor.ts";
import type { Operand, OutputGradient } from "./operand.ts";
import type { Parameter } from "./parameters.ts";
import type { Pass } from "./pass.ts";
import { multiply, sumRule } from "./products.ts";

/** Whether a product overwrites its output or adds to it. */
export type WriteMode = "overwrite" | "accumulate";

export interface LinearBackward {
  /** As the weight gradient reads it. */
  readonly input: Operand;
  readonly dOut: OutputGradient;
  readonly dInput: Tensor<FloatType>;
  readonly mode: WriteMode;
}

export class Linear {
  readonly weight: Parameter;

  constructor(weight: Parameter) {
    this.weight = weight;
  }

  forward(pass: Pass, x: Operand, out: Tensor<FloatType>, mode: WriteMode): void {
    const { weight } = this;
    multiply(pass, { transposition: "nt", a: x, weight, out, accumulate: mode === "accumulate" });
  }

  backward(pass: Pass, call: LinearBackward): void {
    this.backwardInput(pass, call);
    this.queueWeightGrad(pass, call);
  }

  /** The input's gradient alone. */
  backwardInput(pass: Pass, { dOut, dInput, mode }: Omit<LinearBackward, "input">): void {
    const { weight } = this;
    const accumulate = mode === "accumulate";
    multiply(pass, { transposition: "nn", a: dOut.dgrad, weight, out: dInput, accumulate });
  }

  /** The weight's gradient alone. */
  queueWeightGrad(pass: Pass, { input, dOut }: Pick<LinearBackward, "input" | "dOut">): void {
    const { gradient, recipe } = this.weight;
    pass.weightGrads.push({ a: dOut.wgrad, b: input, gradient, sum: sumRule(recipe) });
  }
}
