/**
 * @file A multi-token-prediction module: one more block that predicts one token further.
 *
 *     x_i   = W_proj · [RMSNorm_e(embedding(t_{i+k})) ; RMSNorm_h(hidden_i)]
 *     out_i = Block(x)_i;   the head reads RMSNorm_o(out_i) and predicts t_{i+k+1}    k = 1..D
 *
 *   hidden  the main model's output after its final norm (k = 1), or the block's output of the
 *           module before
 *
 * The embedding comes first in the concatenation, as in the released weights (the report's formula
 * has it second). Embedding and head are the main model's: one tensor, one gradient. Positions are
 * those of i. Saved: x and out (D each) and what the block saves. Recomputed: the embedded tokens
 * and the concatenation. Source: DeepSeek-V3 report §2.2.
 */

import { finish, type Work } from "../parallel/communicator/work.ts";
import type { Arena } from "../tensor/arena.ts";
import type { FloatType } from "../tensor/dtype.ts";
import { sliceColumns, type Tensor } from "../tensor/tensor.ts";
import { Block, type BlockOptions, type BlockSaved } from "./block.ts";
import type { ModelConfig } from "./config.ts";
import type { Embedding } from "./embedding.ts";
import { Linear } from "./linear.ts";
import { RmsNorm } from "./norm.ts";
import { plainGradient } from "./operand.ts";
import type { ComputeType, ParameterSet } from "./parameters.ts";
import { copyToCompute, type Pass } from "./pass.ts";

export interface MtpInputs {
  readonly hidden: Tensor<FloatType>;
  /** t_{i+k}, [1, T]. */
  readonly tokens: Tensor<"i32">;
}

export interface MtpSaved extends MtpInputs {
  readonly out: Tensor<FloatType>;
  readonly block: BlockSaved;
}

export interface MtpBackward {
  /** The gradient of `out`; overwritten. */
  readonly dOut: Tensor<FloatType>;
  /** Overwritten by the gradient of `hidden`. */
  readonly dHidden: Tensor<FloatType>;
}

export class MtpModule {
  readonly embedding: Embedding;
  readonly embeddingNorm: RmsNorm;
  readonly hiddenNorm: RmsNorm;
  readonly projection: Linear;
  readonly block: Block;
  readonly outputNorm: RmsNorm;

  constructor(
    config: ModelConfig,
    parameters: ParameterSet,
    parts: Omit<BlockOptions, "layerIndex"> & {
      /** From 0. */
      readonly moduleIndex: number;
      readonly embedding: Embedding;
    },
  ) {
    const prefix = `mtp.${parts.moduleIndex}`;
    const norm = (name: string): RmsNorm =>
      new RmsNorm(parameters.get(`${prefix}.${name}`), config.rmsNormEps);
    this.embedding = parts.embedding;
    this.embeddingNorm = norm("embeddingNorm");
    this.hiddenNorm = norm("hiddenNorm");
    this.projection = new Linear(parameters.get(`${prefix}.projection`));
    const { bias, experts } = parts;
    const layerIndex = config.numLayers + parts.moduleIndex;
    this.block = new Block(config, parameters, { layerIndex, bias, experts });
    this.outputNorm = norm("outputNorm");
  }

  forward(pass: Pass, inputs: MtpInputs): MtpSaved {
    return finish(this.forwardWork(pass, inputs));
  }

  /** The same, yielding where it waits for other ranks. */
  *forwardWork(pass: Pass, inputs: MtpInputs): Work<MtpSaved> {
    const x = this.join(pass, inputs);
    const out = pass.saved.allocate(pass.floatType, [x.rows, x.columns]);
    return { ...inputs, out, block: yield* this.block.forwardWork(pass, x, out) };
  }

  /** The block's input, in `saved`. */
  join(pass: Pass, inputs: MtpInputs): Tensor<FloatType> {
    const { saved, scratch, floatType } = pass;
    const x = saved.allocate(floatType, [inputs.hidden.rows, inputs.hidden.columns]);
    using _mark = scratch.mark();
    const joined = this.#concatenate(pass, scratch, inputs, this.#embed(pass, inputs));
    this.projection.forward(pass, joined, x, "overwrite");
    return x;
  }

  backward(pass: Pass, state: MtpSaved, gradients: MtpBackward): void {
    finish(this.backwardWork(pass, state, gradients));
  }

  /** The same, yielding where it waits for other ranks. */
  *backwardWork(pass: Pass, state: MtpSaved, { dOut, dHidden }: MtpBackward): Work<void> {
    const { scratch, weightGrads, floatType } = pass;
    const { hidden, tokens } = state;
    yield* this.block.backwardWork(pass, state.block, dOut);
    using _mark = scratch.mark();
    const embedded = this.#embed(pass, state);
    const input = this.#concatenate(pass, weightGrads.arena, state, embedded);
    const dX = plainGradient(copyToCompute(pass, weightGrads.arena, dOut));
    const dInput = scratch.allocate(floatType, [input.rows, input.columns]);
    this.projection.backward(pass, { input, dOut: dX, dInput, mode: "overwrite" });
    const [dFirst, dSecond] = halves(dInput);
    this.hiddenNorm.backward(pass, { x: hidden, dOut: dSecond, dX: dHidden, mode: "overwrite" });
    const dEmbedded = scratch.allocate(floatType, [embedded.rows, embedded.columns]);
    const throughNorm = { x: embedded, dOut: dFirst, dX: dEmbedded, mode: "overwrite" } as const;
    this.embeddingNorm.backward(pass, throughNorm);
    this.embedding.backward(pass, tokens, dEmbedded);
    weightGrads.settle();
  }

  #embed(pass: Pass, { hidden, tokens }: MtpInputs): Tensor<FloatType> {
    const embedded = pass.scratch.allocate(pass.floatType, [hidden.rows, hidden.columns]);
    this.embedding.forward(pass, tokens, embedded);
    return embedded;
  }

  /** [norm of the embedding | norm of the hidden state], from `arena`. */
  #concatenate(
    pass: Pass,
    arena: Arena,
    { hidden }: MtpInputs,
    embedded: Tensor<FloatType>,
  ): Tensor<ComputeType> {
    const joined = arena.allocate(pass.computeType, [hidden.rows, 2 * hidden.columns]);
    const [first, second] = halves(joined);
    this.embeddingNorm.forward(pass, embedded, first);
    this.hiddenNorm.forward(pass, hidden, second);
    return joined;
  }
}

function halves<D extends ComputeType>(joined: Tensor<D>): [Tensor<D>, Tensor<D>] {
  const middle = joined.columns / 2;
  return [sliceColumns(joined, 0, middle), sliceColumns(joined, middle, joined.columns)];
}
