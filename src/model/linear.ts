/**
 * @file A linear layer without bias, and its gradients.
 *
 *     out_TN (=|+=) x_TK · W_NKᵀ
 *     dX_TK (=|+=) dOut_TN · W_NK          dW_NK += dOut_TNᵀ · x_TK  (queued)
 *
 *   x, dOut, W in the compute type; out, dX, dW in the float type
 *
 * Nothing is saved here: the caller keeps or recomputes the rounded input, and rounds the output's
 * gradient once for both products. Both must live until the queue has run.
 */
import { matmul } from "../kernels/matmul/contract.ts";
import type { FloatType } from "../tensor/dtype.ts";
import type { Tensor } from "../tensor/tensor.ts";
import type { ComputeType, Parameter } from "./parameters.ts";
import type { Pass } from "./pass.ts";

/** Whether a product overwrites its output or adds to it. */
export type WriteMode = "overwrite" | "accumulate";

export interface LinearBackward {
  readonly input: Tensor<ComputeType>;
  readonly dOut: Tensor<ComputeType>;
  readonly dInput: Tensor<FloatType>;
  readonly mode: WriteMode;
}

export class Linear {
  readonly weight: Parameter;

  constructor(weight: Parameter) {
    this.weight = weight;
  }

  forward(pass: Pass, x: Tensor<ComputeType>, out: Tensor<FloatType>, mode: WriteMode): void {
    const accumulate = mode === "accumulate";
    matmul(pass.device, { transposition: "nt", a: x, b: this.weight.compute, out, accumulate });
  }

  backward(pass: Pass, { input, dOut, dInput, mode }: LinearBackward): void {
    matmul(pass.device, {
      transposition: "nn",
      a: dOut,
      b: this.weight.compute,
      out: dInput,
      accumulate: mode === "accumulate",
    });
    pass.weightGrads.push({ a: dOut, b: input, gradient: this.weight.gradient });
  }
}
