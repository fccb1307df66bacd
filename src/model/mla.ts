/**
 * @file Multi-head latent attention, naive form (keys and values expanded per head), forward and
 * backward.
 *
 *     c_q = RMSNorm(x · W_DQᵀ), q = c_q · W_UQᵀ      or  q = x · W_Qᵀ without query compression
 *     [latent | keyRope] = x · W_DKVᵀ,  kv = RMSNorm(latent) · W_UKVᵀ
 *     out += attention(turn(q), kv, turn(keyRope)) · W_Oᵀ
 *
 *   x_TD in the compute type, out_TD in the float type
 *   q_T_HNR    per head [nope | rope]        kv_T_HNV   per head [nope key | value]
 *   down_T_CR  [latent | keyRope], the key turned in place
 *
 * Saved per token, as the recipe has it: c_q before its norm (Q) and down (C+R) in the float type;
 * the attention's output (HV); x (D) where it is cached in FP8; q (H(N+R)) and kv (H(N+V)) where
 * the up-projections are not recomputed. Recomputed in backward: both inner norms, the
 * probabilities, and what is not saved. Source: DeepSeek-V2 report §2.1, DeepSeek-V3 report §3.2.3
 * for what is recomputed; W_UKV's per-head order [key | value] as released.
 */
import { defined } from "../base/errors.ts";
import { sumSlices } from "../kernels/accumulate/contract.ts";
import {
  type AttentionShape,
  causalAttention,
  causalAttentionBackward,
} from "../kernels/attention/contract.ts";
import type { Arena } from "../tensor/arena.ts";
import type { FloatType } from "../tensor/dtype.ts";
import { reshape, sliceColumns, sliceRows, type Tensor } from "../tensor/tensor.ts";
import type { ModelConfig } from "./config.ts";
import { Linear } from "./linear.ts";
import { RmsNorm } from "./norm.ts";
import {
  type LayerInput,
  type Operand,
  operandOf,
  outputGradient,
  quantize,
  roundGradient,
  wgradInput,
  wgradSource,
} from "./operand.ts";
import type { ComputeType, Parameter, ParameterSet } from "./parameters.ts";
import { copyToCompute, type Pass } from "./pass.ts";
import { isScaledFormat, isScaledRecipe, type PrecisionRecipe } from "./precision-recipe.ts";
import { turn } from "./rope.ts";
import { attentionScale } from "./yarn.ts";

/** The two ways from the hidden state to the query. */
type QueryProjection =
  | { readonly kind: "direct"; readonly query: Linear }
  | {
      readonly kind: "compressed";
      readonly down: Linear;
      readonly norm: RmsNorm;
      readonly up: Linear;
    };

/** What attention reads, turned. */
interface AttentionInput {
  readonly q: Tensor<FloatType>;
  readonly kv: Tensor<FloatType>;
}

/** Inputs of the up-projections as their weight gradients read them; null: yet to be made. */
interface NormedInputs {
  readonly query: Operand | null;
  readonly latent: Operand | null;
}

export interface MlaSaved {
  /** null where backward is given it. */
  readonly input: Operand | null;
  /** Before the query norm; null without compression. */
  readonly queryDown: Tensor<FloatType> | null;
  readonly down: Tensor<FloatType>;
  /** null where they are recomputed. */
  readonly expanded: AttentionInput | null;
  readonly attended: Operand;
}

export interface MlaBackward {
  /** null where it was saved. */
  readonly input: Operand | null;
  readonly dOut: Tensor<ComputeType>;
  /** Overwritten. */
  readonly dInput: Tensor<FloatType>;
}

/**
 * Head 0's part of W_UKV; head h stands h · headStride elements further. The master values where
 * there are any: their products stand between scores and probabilities, which are in the float type
 * in training too.
 */
export interface AbsorbedWeights {
  /** W_UK, [N, C]: latent scores are q_nope · W_UK. */
  readonly keyUp: Tensor<ComputeType>;
  /** W_UV, [V, C]: a head's output is u · W_UVᵀ. */
  readonly valueUp: Tensor<ComputeType>;
  readonly headStride: number;
}

export class MlaLayer {
  readonly config: ModelConfig;
  /** Multiplies the scores before the softmax. */
  readonly scale: number;
  readonly queryProjection: QueryProjection;
  readonly keyValueDown: Linear;
  readonly latentNorm: RmsNorm;
  readonly keyValueUp: Linear;
  readonly output: Linear;
  readonly recipe: PrecisionRecipe;

  constructor(config: ModelConfig, parameters: ParameterSet, prefix: string) {
    const parameter = (name: string): Parameter => parameters.get(`${prefix}.${name}`);
    this.config = config;
    this.scale = attentionScale(config);
    this.queryProjection =
      config.qLoraRank === null
        ? { kind: "direct", query: new Linear(parameter("query")) }
        : {
            kind: "compressed",
            down: new Linear(parameter("queryDown")),
            norm: new RmsNorm(parameter("queryNorm"), config.rmsNormEps),
            up: new Linear(parameter("queryUp")),
          };
    this.keyValueDown = new Linear(parameter("keyValueDown"));
    this.latentNorm = new RmsNorm(parameter("latentNorm"), config.rmsNormEps);
    this.keyValueUp = new Linear(parameter("keyValueUp"));
    this.output = new Linear(parameter("output"));
    this.recipe = this.output.weight.recipe;
  }

  /** Adds the attention's output to `out`. */
  forward(pass: Pass, { operand, cached }: LayerInput, out: Tensor<FloatType>): MlaSaved {
    const { kvLoraRank, qkRopeHeadDim } = this.config;
    const { floatType, saved, scratch, device } = pass;
    const { recipe } = this;
    using _mark = scratch.mark();
    const queryDown = this.#compressQuery(pass, operand);
    const down = saved.allocate(floatType, [operand.rows, kvLoraRank + qkRopeHeadDim]);
    this.keyValueDown.forward(pass, operand, down, "overwrite");
    turn(device, pass.positions, this.ropeOf(down), "forward");
    const isKept = recipe.tensors.attentionInput.held === "cached";
    const from = { operand, queryDown, down };
    const { q, kv } = this.#expand(pass, isKept ? saved : scratch, from, { again: false });
    const expanded = { q, kv };
    const attended = this.#attend(pass, expanded, down, out);
    return { input: cached, queryDown, down, expanded: isKept ? expanded : null, attended };
  }

  backward(pass: Pass, state: MlaSaved, call: MlaBackward): void {
    const { scratch, floatType, device } = pass;
    const { down, queryDown, attended } = state;
    using _mark = scratch.mark();
    const input = defined(state.input ?? call.input, "the input of attention");
    const { q, kv, ...normed } =
      state.expanded === null
        ? this.#expand(pass, scratch, { operand: input, queryDown, down }, { again: true })
        : { ...state.expanded, query: null, latent: null };
    const dQ = scratch.allocate(floatType, [q.rows, q.columns]);
    const dKv = scratch.allocate(floatType, [kv.rows, kv.columns]);
    const dDown = scratch.allocate(floatType, [down.rows, down.columns]);
    {
      using _inner = scratch.mark();
      const dAttended = scratch.allocate(floatType, [attended.rows, attended.columns]);
      this.output.backward(pass, {
        input: wgradInput(pass, attended, this.recipe),
        dOut: outputGradient(pass, call.dOut, this.recipe),
        dInput: dAttended,
        mode: "overwrite",
      });
      const { numHeads, qkRopeHeadDim } = this.config;
      const dKeyRope = scratch.allocate(floatType, [q.rows, numHeads * qkRopeHeadDim]);
      const keyRope = this.ropeOf(down);
      const inputs = { shape: this.#shape(pass), products: pass.attention, q, kv, keyRope };
      causalAttentionBackward(device, { ...inputs, dOut: dAttended, dQ, dKv, dKeyRope });
      sumSlices(device, { x: dKeyRope, out: this.ropeOf(dDown) });
    }
    turn(device, pass.positions, this.ropeOfHeads(dQ), "backward");
    turn(device, pass.positions, this.ropeOf(dDown), "backward");
    const gradients = { input: wgradInput(pass, input, this.recipe), dInput: call.dInput };
    this.#backwardKeyValue(pass, state, { ...gradients, normed, dKv, dDown });
    this.#backwardQuery(pass, state, { ...gradients, normed, dQ });
  }

  /** The rotated columns of each head, one row a head of a token. */
  ropeOfHeads(q: Tensor<FloatType>): Tensor<FloatType> {
    const { numHeads, qkNopeHeadDim, qkRopeHeadDim } = this.config;
    const headDim = qkNopeHeadDim + qkRopeHeadDim;
    return sliceColumns(reshape(q, [q.rows * numHeads, headDim]), qkNopeHeadDim, headDim);
  }

  /** The key's rotated columns of [latent | keyRope]. */
  ropeOf(down: Tensor<FloatType>): Tensor<FloatType> {
    return sliceColumns(down, this.config.kvLoraRank, down.columns);
  }

  /** The latent columns of [latent | keyRope]. */
  latentOf(down: Tensor<FloatType>): Tensor<FloatType> {
    return sliceColumns(down, 0, this.config.kvLoraRank);
  }

  /** W_UK and W_UV as attention over the latent cache absorbs them. */
  get absorbedWeights(): AbsorbedWeights {
    const { qkNopeHeadDim, vHeadDim, kvLoraRank } = this.config;
    const weight = this.keyValueUp.weight.kept;
    const rows = qkNopeHeadDim + vHeadDim;
    return {
      keyUp: sliceRows(weight, 0, qkNopeHeadDim),
      valueUp: sliceRows(weight, qkNopeHeadDim, rows),
      headStride: rows * kvLoraRank,
    };
  }

  #shape({ numSequences }: Pass): AttentionShape {
    const { numHeads, qkNopeHeadDim, qkRopeHeadDim, vHeadDim } = this.config;
    return {
      numSequences,
      numHeads,
      nope: qkNopeHeadDim,
      rope: qkRopeHeadDim,
      value: vHeadDim,
      scale: this.scale,
    };
  }

  /** The compressed query before its norm; null without compression. */
  #compressQuery(pass: Pass, x: Operand): Tensor<FloatType> | null {
    const projection = this.queryProjection;
    if (projection.kind === "direct") return null;
    const out = pass.saved.allocate(pass.floatType, [x.rows, projection.down.weight.shape[0]]);
    projection.down.forward(pass, x, out, "overwrite");
    return out;
  }

  /**
   * Queries, and keys and values, from `arena`; `again` for a backward pass, which reads the norms
   * for its weight gradients too: these are made beside.
   */
  #expand(
    pass: Pass,
    arena: Arena,
    from: {
      readonly operand: Operand;
      readonly queryDown: Tensor<FloatType> | null;
      readonly down: Tensor<FloatType>;
    },
    { again }: { readonly again: boolean },
  ): AttentionInput & NormedInputs {
    const { numHeads, qkNopeHeadDim, qkRopeHeadDim, vHeadDim } = this.config;
    const { floatType, scratch, device } = pass;
    const rows = from.down.rows;
    const q = arena.allocate(floatType, [rows, numHeads * (qkNopeHeadDim + qkRopeHeadDim)]);
    const kv = arena.allocate(floatType, [rows, numHeads * (qkNopeHeadDim + vHeadDim)]);
    using _mark = scratch.mark();
    const projection = this.queryProjection;
    let query: Operand | null = null;
    if (projection.kind === "direct") {
      projection.query.forward(pass, from.operand, q, "overwrite");
    } else {
      const queryDown = defined(from.queryDown, "the compressed query");
      const compressed = this.#normed(pass, projection.norm, queryDown, { again });
      projection.up.forward(pass, compressed.operand, q, "overwrite");
      query = compressed.wgrad;
    }
    turn(device, pass.positions, this.ropeOfHeads(q), "forward");
    const latent = this.#normed(pass, this.latentNorm, this.latentOf(from.down), { again });
    this.keyValueUp.forward(pass, latent.operand, kv, "overwrite");
    return { q, kv, query, latent: latent.wgrad };
  }

  /** An up-projection's input, from scratch, and if it can be made beside its weight gradient's. */
  #normed(
    pass: Pass,
    norm: RmsNorm,
    x: Tensor<FloatType>,
    { again }: { readonly again: boolean },
  ): { readonly operand: Operand; readonly wgrad: Operand | null } {
    const { recipe } = this;
    const inner = { arena: pass.scratch, use: "innerInput" } as const;
    const wgrad = { arena: pass.weightGrads.arena, use: "wgradInput" } as const;
    const both = again ? norm.computeTiles(pass, x, recipe, [inner, wgrad]) : null;
    if (both !== null) return { operand: both[0], wgrad: both[1] };
    return {
      operand: norm.layerInput(pass, x, { recipe, use: "innerInput" }).operand,
      wgrad: null,
    };
  }

  /** The same as its weight gradient reads it. */
  #normedWgradInput(pass: Pass, norm: RmsNorm, x: Tensor<FloatType>): Operand {
    const { recipe } = this;
    const wanted = { arena: pass.weightGrads.arena, use: "wgradInput" } as const;
    const made = norm.computeTiles(pass, x, recipe, [wanted]);
    if (made !== null) return made[0];
    return wgradInput(pass, norm.compute(pass, wgradSource(pass, recipe), x), recipe);
  }

  /** Adds to `out`; returns the attention's output as it is cached. */
  #attend(
    pass: Pass,
    { q, kv }: AttentionInput,
    down: Tensor<FloatType>,
    out: Tensor<FloatType>,
  ): Operand {
    const { saved, scratch, computeType, floatType, device } = pass;
    const { recipe } = this;
    const size = [q.rows, this.config.numHeads * this.config.vHeadDim];
    const rule = recipe.tensors.attentionOutput;
    const isKept = computeType === floatType && !isScaledFormat(rule.format);
    const attended = (isKept ? saved : scratch).allocate(floatType, size);
    const keyRope = this.ropeOf(down);
    const shape = this.#shape(pass);
    causalAttention(device, { shape, products: pass.attention, q, kv, keyRope, out: attended });
    const kept = isKept ? attended : this.#cacheAttended(pass, attended);
    const a = isScaledRecipe(recipe)
      ? operandOf(pass, scratch, attended, { recipe, use: "linearInput" })
      : kept;
    this.output.forward(pass, a, out, "accumulate");
    return kept;
  }

  #cacheAttended(pass: Pass, attended: Tensor<FloatType>): Operand {
    const rule = this.recipe.tensors.attentionOutput;
    return isScaledFormat(rule.format)
      ? quantize(pass, pass.saved, attended, { rule })
      : copyToCompute(pass, pass.saved, attended);
  }

  /** Overwrites dInput. */
  #backwardKeyValue(
    pass: Pass,
    { down }: MlaSaved,
    gradients: {
      readonly input: Operand;
      readonly normed: NormedInputs;
      readonly dKv: Tensor<FloatType>;
      readonly dDown: Tensor<FloatType>;
      readonly dInput: Tensor<FloatType>;
    },
  ): void {
    const { input, normed, dKv, dDown, dInput } = gradients;
    const { recipe } = this;
    const latent = this.latentOf(down);
    using _mark = pass.scratch.mark();
    const dLatent = pass.scratch.allocate(pass.floatType, [down.rows, latent.columns]);
    this.keyValueUp.backward(pass, {
      input: normed.latent ?? this.#normedWgradInput(pass, this.latentNorm, latent),
      dOut: roundGradient(pass, dKv, recipe),
      dInput: dLatent,
      mode: "overwrite",
    });
    const dX = this.latentOf(dDown);
    this.latentNorm.backward(pass, { x: latent, dOut: dLatent, dX, mode: "overwrite" });
    const dOut = roundGradient(pass, dDown, recipe);
    this.keyValueDown.backward(pass, { input, dOut, dInput, mode: "overwrite" });
  }

  /** Adds to dInput. */
  #backwardQuery(
    pass: Pass,
    state: MlaSaved,
    gradients: {
      readonly input: Operand;
      readonly normed: NormedInputs;
      readonly dQ: Tensor<FloatType>;
      readonly dInput: Tensor<FloatType>;
    },
  ): void {
    const { input, normed, dQ, dInput } = gradients;
    const projection = this.queryProjection;
    const { scratch, floatType } = pass;
    const { recipe } = this;
    using _mark = scratch.mark();
    const dOut = roundGradient(pass, dQ, recipe);
    if (projection.kind === "direct") {
      projection.query.backward(pass, { input, dOut, dInput, mode: "accumulate" });
      return;
    }
    const { down, norm, up } = projection;
    const x = defined(state.queryDown, "the compressed query");
    const dCompressed = scratch.allocate(floatType, [x.rows, x.columns]);
    const dX = scratch.allocate(floatType, [x.rows, x.columns]);
    const compressed = normed.query ?? this.#normedWgradInput(pass, norm, x);
    up.backward(pass, { input: compressed, dOut, dInput: dCompressed, mode: "overwrite" });
    norm.backward(pass, { x, dOut: dCompressed, dX, mode: "overwrite" });
    const dDown = roundGradient(pass, dX, recipe);
    down.backward(pass, { input, dOut: dDown, dInput, mode: "accumulate" });
  }
}
