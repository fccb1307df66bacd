/**
 * @file The output head and the cross entropy, fused: the logits of all tokens never exist at once.
 *
 *     logits_RV = x_RD · W_VDᵀ                for R rows at a time
 *     loss_R = −ln softmax(logits)[target];   objective_R = loss + zLoss · (ln Σ exp logits)²
 *     dX_R (=|+=) dLogits · W,  dW += dLogitsᵀ · x        dLogits = gradScale · ∂objective/∂logits
 *
 * Forward and gradient are one pass, because the gradient's scale is known before. The weight
 * gradient runs at once and not from the queue: its operand is the size of the logits. Saved: what
 * the losses are read from, once the launches are over (two floats a row).
 */
import { assert } from "../base/errors.ts";
import { crossEntropy } from "../kernels/cross-entropy/contract.ts";
import { matmul } from "../kernels/matmul/contract.ts";
import type { FloatType } from "../tensor/dtype.ts";
import { sliceColumns, sliceRows, type Tensor } from "../tensor/tensor.ts";
import { view } from "../tensor/view.ts";
import { Linear, type WriteMode } from "./linear.ts";
import type { ComputeType, Parameter } from "./parameters.ts";
import type { Pass } from "./pass.ts";

/** Logits alive at once; 1024 rows of a vocabulary of 4096. */
const CHUNK_ELEMENTS = 2 ** 22;
const CHUNK_ROWS_LEAST = 64;
const CHUNK_ROWS_MOST = 1024;

/**
 * Rows whose logits exist together. Part of the result: weight gradients are added chunk by chunk.
 */
export function headChunkRows(vocabSize: number): number {
  const rows = Math.floor(CHUNK_ELEMENTS / vocabSize);
  return Math.min(CHUNK_ROWS_MOST, Math.max(CHUNK_ROWS_LEAST, rows));
}

export interface HeadCall {
  readonly input: Tensor<ComputeType>;
  readonly targets: Tensor<"i32">;
  readonly zLoss: number;
}

export interface HeadGradientCall extends HeadCall {
  readonly gradScale: number;
  readonly dInput: Tensor<FloatType>;
  readonly mode: WriteMode;
}

/** What the losses are read from, row by row, [1, R]; in `saved`. */
export interface HeadRows {
  readonly objective: Tensor<FloatType>;
  /** ln Σ exp logits */
  readonly logSumExp: Tensor<FloatType>;
  readonly zLoss: number;
}

export interface HeadLoss {
  /** −ln p of each target. */
  readonly losses: Float64Array;
  /** Σ over the rows of −ln p. */
  readonly loss: number;
  /** Σ over the rows of −ln p + zLoss · (ln Σ exp logits)². */
  readonly objective: number;
}

export class Head {
  readonly linear: Linear;

  constructor(weight: Parameter) {
    this.linear = new Linear(weight);
  }

  /** Logits of a few rows, for generation. */
  forward(pass: Pass, input: Tensor<ComputeType>, logits: Tensor<FloatType>): void {
    this.linear.forward(pass, input, logits, "overwrite");
  }

  /** The losses alone. */
  loss(pass: Pass, call: HeadCall): HeadRows {
    return this.#inChunks(pass, call, null);
  }

  /** The losses, the input's gradient and the weight's. */
  lossAndGradient(pass: Pass, call: HeadGradientCall): HeadRows {
    return this.#inChunks(pass, call, call);
  }

  #inChunks(pass: Pass, call: HeadCall, gradient: HeadGradientCall | null): HeadRows {
    const { input, targets, zLoss } = call;
    const { saved, scratch, floatType, device } = pass;
    const numTokens = input.rows;
    assert(targets.columns === numTokens, `${targets.columns} targets of ${numTokens} rows`);
    const vocabSize = this.linear.weight.shape[0];
    const chunkRows = Math.min(numTokens, headChunkRows(vocabSize));
    const objective = saved.allocate(floatType, [1, numTokens]);
    const logSumExp = saved.allocate(floatType, [1, numTokens]);
    using _mark = scratch.mark();
    const buffer = scratch.allocate(floatType, [chunkRows, vocabSize]);
    for (let start = 0; start < numTokens; start += chunkRows) {
      const end = Math.min(numTokens, start + chunkRows);
      const x = sliceRows(input, start, end);
      const logits = sliceRows(buffer, 0, end - start);
      this.forward(pass, x, logits);
      using _chunk = scratch.mark();
      const rounded =
        gradient === null || pass.computeType !== "bf16"
          ? null
          : scratch.allocate("bf16", [logits.rows, logits.columns]);
      crossEntropy(device, {
        logits,
        targets: sliceColumns(targets, start, end),
        gradScale: gradient?.gradScale ?? 1,
        zLoss,
        loss: sliceColumns(objective, start, end),
        logSumExp: sliceColumns(logSumExp, start, end),
        grad: rounded ?? gradient !== null,
      });
      if (gradient !== null) {
        const dInput = sliceRows(gradient.dInput, start, end);
        const dLogits = rounded ?? logits;
        this.#backwardChunk(pass, { input: x, dLogits, dInput, mode: gradient.mode });
      }
    }
    return { objective, logSumExp, zLoss };
  }

  #backwardChunk(
    pass: Pass,
    chunk: {
      readonly input: Tensor<ComputeType>;
      readonly dLogits: Tensor<ComputeType>;
      readonly dInput: Tensor<FloatType>;
      readonly mode: WriteMode;
    },
  ): void {
    const { input, dLogits: a, dInput, mode } = chunk;
    const { device } = pass;
    const { compute, gradient } = this.linear.weight;
    const accumulate = mode === "accumulate";
    matmul(device, { transposition: "nn", a, b: compute, out: dInput, accumulate });
    matmul(device, { transposition: "tn", a, b: input, out: gradient, accumulate: true });
  }
}

/** The losses of a pass that is over. */
export function readLosses({ objective: rows, logSumExp, zLoss }: HeadRows): HeadLoss {
  const objectives = view(rows);
  const logSumExps = view(logSumExp);
  const losses = new Float64Array(objectives.length);
  let loss = 0;
  let objective = 0;
  for (let row = 0; row < losses.length; row++) {
    losses[row] = objectives[row]! - zLoss * logSumExps[row]! ** 2;
    loss += losses[row]!;
    objective += objectives[row]!;
  }
  return { losses, loss, objective };
}
