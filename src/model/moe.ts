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
 * is therefore never kept. Saved: gateUp (K·2I) and, under a scaled recipe, x (D), as the recipe
 * caches them; w (K), the gate's scores and choice, the plan (2K integers). Recomputed in backward:
 * the gathered rows (K·D) and the activation (K·I), both one pass over what is there. Scaled rows
 * are dispatched as codes and scales; the shared experts read the same codes. Source: DeepSeek-V3
 * report §2.1.2, §3.2.3.
 */
import { defined } from "../base/errors.ts";
import { divExact } from "../base/integers.ts";
import { combineRows, gatherRows, scatterRows } from "../kernels/gather/contract.ts";
import { swiglu, swigluBackward } from "../kernels/swiglu/contract.ts";
import type { Arena } from "../tensor/arena.ts";
import type { FloatType } from "../tensor/dtype.ts";
import { reshape, type Tensor } from "../tensor/tensor.ts";
import type { ModelConfig } from "./config.ts";
import { type DispatchPlan, makeDispatchPlan } from "./dispatch-plan.ts";
import { FeedForward, type FeedForwardSaved } from "./feed-forward.ts";
import { Gate, type GateSaved } from "./gate.ts";
import {
  allocateCached,
  alongTokens,
  cacheAs,
  gatherOperand,
  isScaled,
  layerInput,
  type Operand,
  type OutputGradient,
  openCached,
  operandOf,
  outputGradient,
  plainGradient,
  wgradInput,
  wgradSource,
} from "./operand.ts";
import type { ComputeType, Parameter, ParameterSet } from "./parameters.ts";
import type { Pass } from "./pass.ts";
import type { PrecisionRecipe, TensorClass } from "./precision-recipe.ts";
import { multiply, type Product, sumRule } from "./products.ts";

export interface MoeSaved {
  readonly gate: GateSaved;
  readonly plan: DispatchPlan;
  /** null where backward makes it again from its input. */
  readonly input: Operand | null;
  readonly gateUp: Operand;
  /** Routing weight of each row, [R, 1]. */
  readonly rowWeight: Tensor<FloatType>;
  readonly shared: FeedForwardSaved | null;
}

export interface MoeBackward {
  /** The gate reads it whatever was saved. */
  readonly input: Tensor<ComputeType> | null;
  readonly dOut: Tensor<ComputeType>;
  /** Overwritten. */
  readonly dInput: Tensor<FloatType>;
}

export class MoeLayer {
  readonly gate: Gate;
  readonly expertsGateUp: Parameter;
  readonly expertsDown: Parameter;
  readonly sharedExperts: FeedForward | null;
  readonly recipe: PrecisionRecipe;
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
    this.recipe = this.expertsDown.recipe;
    this.#hiddenDim = config.hiddenDim;
    this.#expertWidth = config.moeIntermediateDim;
  }

  /** Adds to `out`. */
  forward(pass: Pass, x: Tensor<ComputeType>, out: Tensor<FloatType>): MoeSaved {
    const { saved, scratch, floatType, device } = pass;
    const { recipe } = this;
    const gate = this.gate.forward(pass, x);
    const plan = makeDispatchPlan(pass, gate.choice, this.gate.rule.numExperts);
    const numRows = plan.tokenOfRow.columns;
    const rowWeight = saved.allocate(floatType, [numRows, 1]);
    const rowOfChoice = reshape(plan.rowOfChoice, [1, numRows]);
    scatterRows(device, { x: asColumn(gate.weight), index: rowOfChoice, out: rowWeight });
    using _mark = scratch.mark();
    const { operand, cached } = layerInput(pass, x, { recipe, use: "dispatch" });
    const rule = recipe.tensors.swigluInput;
    const gateUp = allocateCached(pass, rule, [numRows, 2 * this.#expertWidth]);
    {
      using _inner = scratch.mark();
      const a = this.#gather(pass, scratch, operand, plan, "dispatch");
      this.#multiply(
        pass,
        { transposition: "nt", a, weight: this.expertsGateUp, out: gateUp },
        plan,
      );
    }
    this.#forwardDown(pass, { gateUp, rowWeight, plan, out });
    const kept = cacheAs(pass, gateUp, rule);
    const shared = this.sharedExperts?.forward(pass, operand, out) ?? null;
    return { gate, plan, input: cached, gateUp: kept, rowWeight, shared };
  }

  /** Activation, down product and combination. */
  #forwardDown(
    pass: Pass,
    rows: {
      readonly gateUp: Tensor<FloatType>;
      readonly rowWeight: Tensor<FloatType>;
      readonly plan: DispatchPlan;
      readonly out: Tensor<FloatType>;
    },
  ): void {
    const { scratch, floatType, computeType, device } = pass;
    const { gateUp, rowWeight, plan, out } = rows;
    using _mark = scratch.mark();
    const activation = scratch.allocate(computeType, [gateUp.rows, this.#expertWidth]);
    swiglu(device, { gateUp, weight: rowWeight, out: activation });
    const a = operandOf(pass, scratch, activation, { recipe: this.recipe, use: "swigluOutput" });
    const expertOut = scratch.allocate(floatType, [gateUp.rows, this.#hiddenDim]);
    this.#multiply(
      pass,
      { transposition: "nt", a, weight: this.expertsDown, out: expertOut },
      plan,
    );
    combineRows(device, { src: expertOut, index: plan.rowOfChoice, out });
  }

  backward(pass: Pass, state: MoeSaved, { input, dOut, dInput }: MoeBackward): void {
    const { scratch, floatType, device } = pass;
    const { gate, plan, shared } = state;
    using _mark = scratch.mark();
    const x = defined(input, "the input of a mixture of experts");
    const use = { recipe: this.recipe, use: "dispatch" } as const;
    const operand = state.input ?? operandOf(pass, scratch, x, use);
    const rowWeightGrad = scratch.allocate(floatType, [plan.tokenOfRow.columns, 1]);
    const dWeight = scratch.allocate(floatType, gate.weight.shape);
    const dRows = scratch.allocate(floatType, [plan.tokenOfRow.columns, this.#hiddenDim]);
    this.#backwardExperts(pass, state, { input: operand, dOut, dRows, rowWeightGrad });
    const index = reshape(plan.rowOfChoice, [1, plan.tokenOfRow.columns]);
    gatherRows(device, { src: rowWeightGrad, index, out: asColumn(dWeight) });
    this.gate.backward(pass, gate, { input: x, dWeight, dInput });
    combineRows(device, { src: dRows, index: plan.rowOfChoice, out: dInput });
    if (this.sharedExperts !== null && shared !== null) {
      const call = { input: operand, dOut, dInput, mode: "accumulate" } as const;
      this.sharedExperts.backward(pass, shared, call);
    }
  }

  /** Gradients of the dispatched rows and of their weights. */
  #backwardExperts(
    pass: Pass,
    state: MoeSaved,
    call: {
      readonly input: Operand;
      readonly dOut: Tensor<ComputeType>;
      readonly dRows: Tensor<FloatType>;
      readonly rowWeightGrad: Tensor<FloatType>;
    },
  ): void {
    const { scratch, floatType, computeType, device } = pass;
    const { plan, rowWeight } = state;
    const { recipe } = this;
    const groups = { kind: "offsets", offsets: plan.offsets } as const;
    const source = wgradSource(pass, recipe);
    using _mark = scratch.mark();
    const gateUp = openCached(pass, state.gateUp);
    const shape = [gateUp.rows, divExact(gateUp.columns, 2)];
    const activation = source.allocate(computeType, shape);
    swiglu(device, { gateUp, weight: rowWeight, out: activation });
    const dOut = this.#dispatchGradient(pass, call.dOut, plan);
    const dGateUp = source.allocate(computeType, [gateUp.rows, gateUp.columns]);
    {
      using _inner = scratch.mark();
      const dActivation = scratch.allocate(floatType, shape);
      const down = { transposition: "nn", a: dOut.dgrad, weight: this.expertsDown } as const;
      this.#multiply(pass, { ...down, out: dActivation }, plan);
      const dWeight = call.rowWeightGrad;
      swigluBackward(device, { gateUp, weight: rowWeight, dOut: dActivation, dGateUp, dWeight });
    }
    const { wgrad } = dOut;
    this.#queue(pass, { a: wgrad, b: activation, weight: this.expertsDown }, plan);
    const dUp = outputGradient(pass, dGateUp, recipe, groups);
    const up = { transposition: "nn", a: dUp.dgrad, weight: this.expertsGateUp } as const;
    this.#multiply(pass, { ...up, out: call.dRows }, plan);
    const b = this.#gather(pass, source, call.input, plan, "dispatch");
    this.#queue(pass, { a: dUp.wgrad, b, weight: this.expertsGateUp }, plan);
  }

  /** The output's gradient of each dispatched row. */
  #dispatchGradient(pass: Pass, dOut: Tensor<ComputeType>, plan: DispatchPlan): OutputGradient {
    const { recipe } = this;
    const source = wgradSource(pass, recipe);
    const use = "dispatchGradient";
    const operand = operandOf(pass, pass.scratch, dOut, { recipe, use });
    const dgrad = this.#gather(pass, source, operand, plan, use);
    if (!isScaled(dgrad)) return plainGradient(dgrad);
    const groups = { kind: "offsets", offsets: plan.offsets } as const;
    const wgrad = alongTokens(pass, dgrad, { rule: recipe.tensors.wgradGradient, groups });
    return { dgrad, wgrad };
  }

  #multiply(
    pass: Pass,
    product: Omit<Product, "accumulate" | "offsets">,
    { offsets }: DispatchPlan,
  ): void {
    multiply(pass, { ...product, accumulate: false, offsets });
  }

  /** Queue an expert weight's gradient; `b` is the input, not yet as weight gradients read it. */
  #queue(
    pass: Pass,
    work: { readonly a: Operand; readonly b: Operand; readonly weight: Parameter },
    { offsets }: DispatchPlan,
  ): void {
    const { a, weight } = work;
    const b = wgradInput(pass, work.b, this.recipe, { kind: "offsets", offsets });
    const { gradient, recipe } = weight;
    pass.weightGrads.push({ a, b, gradient, offsets, sum: sumRule(recipe) });
  }

  /** Each row's token. */
  #gather(
    pass: Pass,
    arena: Arena,
    x: Operand,
    { tokenOfRow }: DispatchPlan,
    use: TensorClass,
  ): Operand {
    const rule = this.recipe.tensors[use];
    return gatherOperand(pass, arena, { x, index: tokenOfRow, rule });
  }
}

/** [T, K] seen as [T·K, 1]. */
function asColumn(tensor: Tensor<FloatType>): Tensor<FloatType> {
  return reshape(tensor, [tensor.rows * tensor.columns, 1]);
}
