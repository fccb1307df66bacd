/**
 * @file A mixture-of-experts layer: every token through its K chosen experts and the shared ones;
 * forward and backward.
 *
 *     x_RD = x_TD[tokenOfRow]                                    dispatch
 *     [gate | up]_R2I = x_RD · W_gateUp[expert of the row]ᵀ
 *     h_RI = w_R · silu(gate) ⊙ up                               w: the row's routing weight
 *     out_TD += Σ_k (h · W_down[expert]ᵀ)[rowOfChoice_tk]  + sharedExperts(x)      combine
 *
 *   T tokens, R = T·K rows sorted by expert, no token dropped
 *
 * The weight multiplies the activation instead of the expert's output: the down product is linear,
 * so the sum is the same, and its gradient Σ_i dh · silu(gate) · up needs no expert output, which
 * is therefore never kept. Saved: gateUp (K·2I) and w (K) in the float type, the gate's scores and
 * choice, the plan (3K integers). Recomputed in backward: the gathered rows (K·D) and the
 * activation (K·I), both one pass over what is there. Source: DeepSeek-V3 report §2.1.2.
 */
import { divExact } from "../base/integers.ts";
import { combineRows, gatherRows } from "../kernels/gather/contract.ts";
import { groupedMatmul } from "../kernels/grouped-matmul/contract.ts";
import { swiglu, swigluBackward } from "../kernels/swiglu/contract.ts";
import type { Arena } from "../tensor/arena.ts";
import type { FloatType } from "../tensor/dtype.ts";
import { reshape, type Tensor } from "../tensor/tensor.ts";
import type { ModelConfig } from "./config.ts";
import { type DispatchPlan, makeDispatchPlan } from "./dispatch-plan.ts";
import { FeedForward, type FeedForwardSaved } from "./feed-forward.ts";
import { Gate, type GateSaved } from "./gate.ts";
import type { ComputeType, Parameter, ParameterSet } from "./parameters.ts";
import type { Pass } from "./pass.ts";

export interface MoeSaved {
  readonly gate: GateSaved;
  readonly plan: DispatchPlan;
  readonly gateUp: Tensor<FloatType>;
  /** Routing weight of each row, [R, 1]. */
  readonly rowWeight: Tensor<FloatType>;
  readonly shared: FeedForwardSaved | null;
}

export interface MoeBackward {
  readonly input: Tensor<ComputeType>;
  readonly dOut: Tensor<ComputeType>;
  /** Overwritten. */
  readonly dInput: Tensor<FloatType>;
}

export class MoeLayer {
  readonly gate: Gate;
  readonly expertsGateUp: Parameter;
  readonly expertsDown: Parameter;
  readonly sharedExperts: FeedForward | null;
  readonly #hiddenDim: number;
  readonly #expertWidth: number;

  constructor(
    config: ModelConfig,
    parameters: ParameterSet,
    { prefix, bias }: { readonly prefix: string; readonly bias: Tensor<FloatType> },
  ) {
    this.gate = new Gate(config, parameters.get(`${prefix}.gate`), bias);
    this.expertsGateUp = parameters.get(`${prefix}.experts.gateUp`);
    this.expertsDown = parameters.get(`${prefix}.experts.down`);
    this.sharedExperts =
      config.numSharedExperts === 0 ? null : new FeedForward(parameters, `${prefix}.sharedExperts`);
    this.#hiddenDim = config.hiddenDim;
    this.#expertWidth = config.moeIntermediateDim;
  }

  /** Adds to `out`. */
  forward(pass: Pass, x: Tensor<ComputeType>, out: Tensor<FloatType>): MoeSaved {
    const { saved, scratch, floatType, computeType, device } = pass;
    const gate = this.gate.forward(pass, x);
    const plan = makeDispatchPlan(pass, gate.choice, this.gate.rule.numExperts);
    const { offsets, tokenOfRow, choiceOfRow, rowOfChoice } = plan;
    const numRows = tokenOfRow.columns;
    const rowWeight = saved.allocate(floatType, [numRows, 1]);
    gatherRows(device, { src: asColumn(gate.weight), index: choiceOfRow, out: rowWeight });
    const gateUp = saved.allocate(floatType, [numRows, 2 * this.#expertWidth]);
    {
      using _mark = scratch.mark();
      const a = this.#gather(pass, scratch, x, plan);
      const b = this.expertsGateUp.compute;
      groupedMatmul(device, { transposition: "nt", a, b, out: gateUp, offsets });
    }
    {
      using _mark = scratch.mark();
      const a = scratch.allocate(computeType, [numRows, this.#expertWidth]);
      swiglu(device, { gateUp, weight: rowWeight, out: a });
      const expertOut = scratch.allocate(floatType, [numRows, this.#hiddenDim]);
      const b = this.expertsDown.compute;
      groupedMatmul(device, { transposition: "nt", a, b, out: expertOut, offsets });
      combineRows(device, { src: expertOut, index: rowOfChoice, out });
    }
    const shared = this.sharedExperts?.forward(pass, x, out) ?? null;
    return { gate, plan, gateUp, rowWeight, shared };
  }

  backward(pass: Pass, state: MoeSaved, { input, dOut, dInput }: MoeBackward): void {
    const { scratch, floatType, device } = pass;
    const { gate, plan, shared } = state;
    using _mark = scratch.mark();
    const rowWeightGrad = scratch.allocate(floatType, [plan.tokenOfRow.columns, 1]);
    const dWeight = scratch.allocate(floatType, gate.weight.shape);
    const dRows = scratch.allocate(floatType, [plan.tokenOfRow.columns, this.#hiddenDim]);
    this.#backwardExperts(pass, state, { input, dOut, dRows, rowWeightGrad });
    const index = reshape(plan.rowOfChoice, [1, plan.tokenOfRow.columns]);
    gatherRows(device, { src: rowWeightGrad, index, out: asColumn(dWeight) });
    this.gate.backward(pass, gate, { input, dWeight, dInput });
    combineRows(device, { src: dRows, index: plan.rowOfChoice, out: dInput });
    if (this.sharedExperts !== null && shared !== null) {
      this.sharedExperts.backward(pass, shared, { input, dOut, dInput, mode: "accumulate" });
    }
  }

  /** Gradients of the dispatched rows and of their weights. */
  #backwardExperts(
    pass: Pass,
    { plan, gateUp, rowWeight }: MoeSaved,
    call: {
      readonly input: Tensor<ComputeType>;
      readonly dOut: Tensor<ComputeType>;
      readonly dRows: Tensor<FloatType>;
      readonly rowWeightGrad: Tensor<FloatType>;
    },
  ): void {
    const { scratch, weightGrads, floatType, computeType, device } = pass;
    const { offsets } = plan;
    const shape = [gateUp.rows, divExact(gateUp.columns, 2)];
    const pending = weightGrads.arena;
    const activation = pending.allocate(computeType, shape);
    swiglu(device, { gateUp, weight: rowWeight, out: activation });
    const dOut = this.#gather(pass, pending, call.dOut, plan);
    const dGateUp = pending.allocate(computeType, [gateUp.rows, gateUp.columns]);
    const nn = { transposition: "nn", offsets } as const;
    {
      using _mark = scratch.mark();
      const dActivation = scratch.allocate(floatType, shape);
      groupedMatmul(device, { ...nn, a: dOut, b: this.expertsDown.compute, out: dActivation });
      const dWeight = call.rowWeightGrad;
      swigluBackward(device, { gateUp, weight: rowWeight, dOut: dActivation, dGateUp, dWeight });
    }
    weightGrads.push({ a: dOut, b: activation, gradient: this.expertsDown.gradient, offsets });
    groupedMatmul(device, { ...nn, a: dGateUp, b: this.expertsGateUp.compute, out: call.dRows });
    const b = this.#gather(pass, pending, call.input, plan);
    weightGrads.push({ a: dGateUp, b, gradient: this.expertsGateUp.gradient, offsets });
  }

  /** Each row's token. */
  #gather(
    pass: Pass,
    arena: Arena,
    src: Tensor<ComputeType>,
    { tokenOfRow }: DispatchPlan,
  ): Tensor<ComputeType> {
    const out = arena.allocate(pass.computeType, [tokenOfRow.columns, src.columns]);
    gatherRows(pass.device, { src, index: tokenOfRow, out });
    return out;
  }
}

/** [T, K] seen as [T·K, 1]. */
function asColumn(tensor: Tensor<FloatType>): Tensor<FloatType> {
  return reshape(tensor, [tensor.rows * tensor.columns, 1]);
}
