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
 * Saved per token: c_q before its norm (Q), q (H(N+R)), down (C+R), kv (H(N+V)) in the float type,
 * and the attention's output (HV) in the compute type. Recomputed in backward: x (by the caller),
 * both inner norms, the probabilities. The up-projections are kept, not recomputed: on a CPU time
 * is scarcer than memory, unlike in the V3 recipe. Source: DeepSeek-V2 report §2.1; W_UKV's
 * per-head order [key | value] as released.
 */
import { defined } from "../base/errors.ts";
import { accumulate } from "../kernels/accumulate/contract.ts";
import {
  type AttentionShape,
  causalAttention,
  causalAttentionBackward,
} from "../kernels/attention/contract.ts";
import { castRows } from "../kernels/cast-rows/contract.ts";
import type { FloatType } from "../tensor/dtype.ts";
import { reshape, sliceColumns, sliceRows, type Tensor } from "../tensor/tensor.ts";
import type { ModelConfig } from "./config.ts";
import { Linear } from "./linear.ts";
import { RmsNorm } from "./norm.ts";
import type { ComputeType, Parameter, ParameterSet } from "./parameters.ts";
import { copyToCompute, type Pass } from "./pass.ts";
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

export interface MlaSaved {
  /** Before the query norm; null without compression. */
  readonly queryDown: Tensor<FloatType> | null;
  readonly q: Tensor<FloatType>;
  readonly down: Tensor<FloatType>;
  readonly kv: Tensor<FloatType>;
  readonly attended: Tensor<ComputeType>;
}

export interface MlaBackward {
  readonly input: Tensor<ComputeType>;
  readonly dOut: Tensor<ComputeType>;
  /** Overwritten. */
  readonly dInput: Tensor<FloatType>;
}

/**
 * Head 0's part of W_UKV; head h stands h · headStride elements further. The master values: their
 * products stand between scores and probabilities, which are in the float type in training too.
 */
export interface AbsorbedWeights {
  /** W_UK, [N, C]: latent scores are q_nope · W_UK. */
  readonly keyUp: Tensor<FloatType>;
  /** W_UV, [V, C]: a head's output is u · W_UVᵀ. */
  readonly valueUp: Tensor<FloatType>;
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
  }

  /** Adds the attention's output to `out`. */
  forward(pass: Pass, x: Tensor<ComputeType>, out: Tensor<FloatType>): MlaSaved {
    const { numHeads, qkNopeHeadDim, vHeadDim, kvLoraRank, qkRopeHeadDim } = this.config;
    const { floatType, saved, scratch, device } = pass;
    using _mark = scratch.mark();
    const { queryDown, q } = this.#projectQuery(pass, x);
    const down = saved.allocate(floatType, [x.rows, kvLoraRank + qkRopeHeadDim]);
    this.keyValueDown.forward(pass, x, down, "overwrite");
    const latent = this.latentNorm.compute(pass, scratch, this.latentOf(down));
    const kv = saved.allocate(floatType, [x.rows, numHeads * (qkNopeHeadDim + vHeadDim)]);
    this.keyValueUp.forward(pass, latent, kv, "overwrite");
    turn(device, pass.positions, this.ropeOfHeads(q), "forward");
    turn(device, pass.positions, this.ropeOf(down), "forward");
    const attended = this.#attend(pass, q, kv, down);
    this.output.forward(pass, attended, out, "accumulate");
    return { queryDown, q, down, kv, attended };
  }

  backward(pass: Pass, state: MlaSaved, { input, dOut, dInput }: MlaBackward): void {
    const { scratch, floatType, device } = pass;
    const { q, kv, down, attended } = state;
    using _mark = scratch.mark();
    const dQ = scratch.allocate(floatType, [q.rows, q.columns]);
    const dKv = scratch.allocate(floatType, [kv.rows, kv.columns]);
    const dDown = scratch.allocate(floatType, [down.rows, down.columns]);
    {
      using _inner = scratch.mark();
      const dAttended = scratch.allocate(floatType, [attended.rows, attended.columns]);
      this.output.backward(pass, { input: attended, dOut, dInput: dAttended, mode: "overwrite" });
      const { numHeads, qkRopeHeadDim } = this.config;
      const dKeyRope = scratch.allocate(floatType, [q.rows, numHeads * qkRopeHeadDim]);
      const inputs = { shape: this.#shape(pass), q, kv, keyRope: this.ropeOf(down) };
      causalAttentionBackward(device, { ...inputs, dOut: dAttended, dQ, dKv, dKeyRope });
      this.#sumOverHeads(pass, dKeyRope, this.ropeOf(dDown));
    }
    turn(device, pass.positions, this.ropeOfHeads(dQ), "backward");
    turn(device, pass.positions, this.ropeOf(dDown), "backward");
    this.#backwardKeyValue(pass, state, { input, dKv, dDown, dInput });
    this.#backwardQuery(pass, state, { input, dQ, dInput });
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
    const weight = this.keyValueUp.weight.value;
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

  #projectQuery(pass: Pass, x: Tensor<ComputeType>): Pick<MlaSaved, "queryDown" | "q"> {
    const projection = this.queryProjection;
    const { saved, scratch, floatType } = pass;
    if (projection.kind === "direct") {
      const q = saved.allocate(floatType, [x.rows, projection.query.weight.shape[0]]);
      projection.query.forward(pass, x, q, "overwrite");
      return { queryDown: null, q };
    }
    const queryDown = saved.allocate(floatType, [x.rows, projection.down.weight.shape[0]]);
    projection.down.forward(pass, x, queryDown, "overwrite");
    const compressed = projection.norm.compute(pass, scratch, queryDown);
    const q = saved.allocate(floatType, [x.rows, projection.up.weight.shape[0]]);
    projection.up.forward(pass, compressed, q, "overwrite");
    return { queryDown, q };
  }

  #attend(
    pass: Pass,
    q: Tensor<FloatType>,
    kv: Tensor<FloatType>,
    down: Tensor<FloatType>,
  ): Tensor<ComputeType> {
    const { saved, scratch, computeType, floatType, device } = pass;
    const columns = this.config.numHeads * this.config.vHeadDim;
    const attended = saved.allocate(computeType, [q.rows, columns]);
    const rounds = computeType !== floatType;
    const out = rounds
      ? scratch.allocate(floatType, [q.rows, columns])
      : (attended as Tensor<FloatType>);
    const keyRope = this.ropeOf(down);
    causalAttention(device, { shape: this.#shape(pass), q, kv, keyRope, out });
    if (rounds) castRows(device, { x: out, out: attended });
    return attended;
  }

  #sumOverHeads(pass: Pass, perHead: Tensor<FloatType>, out: Tensor<FloatType>): void {
    const { numHeads, qkRopeHeadDim } = this.config;
    for (let head = 0; head < numHeads; head++) {
      const x = sliceColumns(perHead, head * qkRopeHeadDim, (head + 1) * qkRopeHeadDim);
      if (head === 0) castRows(pass.device, { x, out });
      else accumulate(pass.device, { x, scale: 1, out });
    }
  }

  #backwardKeyValue(
    pass: Pass,
    { down }: MlaSaved,
    gradients: {
      readonly input: Tensor<ComputeType>;
      readonly dKv: Tensor<FloatType>;
      readonly dDown: Tensor<FloatType>;
      readonly dInput: Tensor<FloatType>;
    },
  ): void {
    const { dKv, dDown, dInput } = gradients;
    const pending = pass.weightGrads.arena;
    const latent = this.latentOf(down);
    {
      using _mark = pass.scratch.mark();
      const dLatent = pass.scratch.allocate(pass.floatType, [down.rows, latent.columns]);
      this.keyValueUp.backward(pass, {
        input: this.latentNorm.compute(pass, pending, latent),
        dOut: copyToCompute(pass, pending, dKv),
        dInput: dLatent,
        mode: "overwrite",
      });
      const dX = this.latentOf(dDown);
      this.latentNorm.backward(pass, { x: latent, dOut: dLatent, dX, mode: "overwrite" });
    }
    const dOut = copyToCompute(pass, pending, dDown);
    this.keyValueDown.backward(pass, { input: gradients.input, dOut, dInput, mode: "overwrite" });
  }

  /** Adds to dInput. */
  #backwardQuery(
    pass: Pass,
    state: MlaSaved,
    gradients: {
      readonly input: Tensor<ComputeType>;
      readonly dQ: Tensor<FloatType>;
      readonly dInput: Tensor<FloatType>;
    },
  ): void {
    const { input, dQ, dInput } = gradients;
    const projection = this.queryProjection;
    const { scratch, weightGrads, floatType } = pass;
    const dOut = copyToCompute(pass, weightGrads.arena, dQ);
    if (projection.kind === "direct") {
      projection.query.backward(pass, { input, dOut, dInput, mode: "accumulate" });
      return;
    }
    using _mark = scratch.mark();
    const { down, norm, up } = projection;
    const x = defined(state.queryDown, "the compressed query");
    const dCompressed = scratch.allocate(floatType, [x.rows, x.columns]);
    const dX = scratch.allocate(floatType, [x.rows, x.columns]);
    const compressed = norm.compute(pass, weightGrads.arena, x);
    up.backward(pass, { input: compressed, dOut, dInput: dCompressed, mode: "overwrite" });
    norm.backward(pass, { x, dOut: dCompressed, dX, mode: "overwrite" });
    const dDown = copyToCompute(pass, weightGrads.arena, dX);
    down.backward(pass, { input, dOut: dDown, dInput, mode: "accumulate" });
  }
}
