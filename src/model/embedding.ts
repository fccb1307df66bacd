/**
 * @file The token embedding: rows of a table, and the gradient scattered back to them.
 *
 *     out_TD = table_VD[token_T]          dTable[token_t] += dOut_t, in the order of the tokens
 *
 * Rows come from the master values where there are any, not from a rounded copy. With tied
 * embeddings the head reads the same parameter and both add to one gradient.
 */
import { gatherRows, scatterAddRows } from "../kernels/gather/contract.ts";
import type { FloatType } from "../tensor/dtype.ts";
import type { Tensor } from "../tensor/tensor.ts";
import type { Parameter } from "./parameters.ts";
import type { Pass } from "./pass.ts";

export class Embedding {
  readonly table: Parameter;

  constructor(table: Parameter) {
    this.table = table;
  }

  forward(pass: Pass, tokens: Tensor<"i32">, out: Tensor<FloatType>): void {
    gatherRows(pass.device, { src: this.table.kept, index: tokens, out });
  }

  backward(pass: Pass, tokens: Tensor<"i32">, dOut: Tensor<FloatType>): void {
    scatterAddRows(pass.device, { x: dOut, index: tokens, out: this.table.gradient });
  }
}
