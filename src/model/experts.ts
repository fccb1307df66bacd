/**
 * @file The routed experts of a layer that are held here, over the tokens that are here.
 *
 *     x_RD = x_TD[tokenOfRow]
 *     [gate | up]_R2I = x_RD · W_gateUp[expert of the row]ᵀ
 *     h_RI = w_R · silu(gate) ⊙ up                               w: the row's routing weight
 *     out_TD += Σ_k (h · W_down[expert]ᵀ)[rowOfChoice_tk]
 *
 * Saved: gateUp (K·2I) as the recipe caches it, w (K). Recomputed in backward: the gathered rows
 * (K·D) and the activation (K·I), both one pass over what is there.
 */
import { combineRows, gatherRows, scatterRows } from "../kernels/gather/contract.ts";
import type { Arena } from "../tensor/arena.ts";
import type { FloatType } from "../tensor/dtype.ts";
import { reshape, sliceRows, type Tensor } from "../tensor/tensor.ts";
import { allocateRows, type DispatchPlan } from "./dispatch-plan.ts";
import { activate, activateBackward } from "./gated-activation.ts";
import {
  allocateCached,
  alongTokens,
  gatherOperand,
  isScaled,
  type Operand,
  type OutputGradient,
  plainGradient,
  wgradInput,
  wgradSource,
} from "./operand.ts";
import type { Parameter, ParameterSet } from "./parameters.ts";
import type { Pass } from "./pass.ts";
import type { PrecisionRecipe, TensorClass } from "./precision-recipe.ts";
import { multiply, type Product, sumRule } from "./products.ts";

export interface ExpertsSaved {
  readonly plan: DispatchPlan;
  readonly gateUp: Operand;
  /** Routing weight of each row, [R, 1]. */
  readonly rowWeight: Tensor<FloatType>;
}

/** Tokens as experts take them. */
export interface ExpertTokens {
  readonly plan: DispatchPlan;
  /** [T, D] */
  readonly input: Operand;
  /** Of each choice, [T, K]. */
  readonly weight: Tensor<FloatType>;
}

/** Where a layer's output goes. */
export interface Sum {
  /** [T, D] */
  readonly out: Tensor<FloatType>;
  /** What the output is added to: `out` if left out. */
  readonly base?: Tensor<FloatType> | undefined;
}

export interface ExpertsBackward {
  /** As in forward. */
  readonly input: Operand;
  /** [T, D] */
  readonly dOut: Operand;
  /** Gradient of the weights, [T, K]; overwritten. */
  readonly dWeight: Tensor<FloatType>;
}

export class RoutedExperts {
  readonly gateUp: Parameter;
  readonly down: Parameter;
  readonly recipe: PrecisionRecipe;

  constructor(parameters: ParameterSet, prefix: string) {
    this.gateUp = parameters.get(`${prefix}.gateUp`);
    this.down = parameters.get(`${prefix}.down`);
    this.recipe = this.down.recipe;
  }

  get numExperts(): number {
    return this.down.numExperts;
  }

  forward(pass: Pass, tokens: ExpertTokens, { out, base = out }: Sum): ExpertsSaved {
    const { saved, scratch, floatType, device } = pass;
    const { plan, input, weight } = tokens;
    const numRows = plan.tokenOfRow.columns;
    const numChoices = weight.rows * weight.columns;
    const places = saved.allocate(floatType, [numChoices, 1]);
    const index = reshape(plan.placeOfChoice, [1, numChoices]);
    scatterRows(device, { x: asColumn(weight), index, out: places });
    const rowWeight = sliceRows(places, 0, numRows);
    using _mark = scratch.mark();
    const rule = this.recipe.tensors.swigluInput;
    const gateUp = allocateCached(pass, rule, [numRows, 2 * this.down.shape[1]]);
    {
      using _inner = scratch.mark();
      const a = this.#gather(pass, scratch, input, plan, "dispatch");
      this.#multiply(pass, { transposition: "nt", a, weight: this.gateUp, out: gateUp }, plan);
    }
    const { kept, activation } = activate(pass, { gateUp, weight: rowWeight, recipe: this.recipe });
    const made = allocateRows(scratch, floatType, plan, out.columns);
    const down = { transposition: "nt", a: activation, weight: this.down } as const;
    this.#multiply(pass, { ...down, out: made.rows }, plan);
    combineRows(device, { src: made.all, index: plan.rowOfChoice, base, out });
    return { plan, gateUp: kept, rowWeight };
  }

  /**
   * The gradient of the input, still row by row and in scratch: `combineRows` with the plan's
   * `rowOfChoice` adds it to its tokens.
   */
  backward(pass: Pass, state: ExpertsSaved, call: ExpertsBackward): Tensor<FloatType> {
    const { scratch, floatType, device } = pass;
    const { plan } = state;
    const { input, dOut, dWeight } = call;
    const dRows = allocateRows(scratch, floatType, plan, input.columns);
    using _mark = scratch.mark();
    const rowWeightGrad = allocateRows(scratch, floatType, plan, 1);
    this.#backwardRows(pass, state, {
      input,
      dOut,
      dRows: dRows.rows,
      rowWeightGrad: rowWeightGrad.rows,
    });
    const index = reshape(plan.rowOfChoice, [1, dWeight.rows * dWeight.columns]);
    gatherRows(device, { src: rowWeightGrad.all, index, out: asColumn(dWeight) });
    return dRows.all;
  }

  /** Gradients of the dispatched rows and of their weights. */
  #backwardRows(
    pass: Pass,
    state: ExpertsSaved,
    call: {
      readonly input: Operand;
      readonly dOut: Operand;
      readonly dRows: Tensor<FloatType>;
      readonly rowWeightGrad: Tensor<FloatType>;
    },
  ): void {
    const { plan, rowWeight, gateUp } = state;
    const { recipe } = this;
    const groups = { kind: "offsets", offsets: plan.offsets } as const;
    const source = wgradSource(pass, recipe);
    using _mark = pass.scratch.mark();
    const dOut = this.#dispatchGradient(pass, call.dOut, plan);
    const weights = { weight: rowWeight, dWeight: call.rowWeightGrad };
    const rows = { gateUp, weights, recipe, groups };
    const { input, dGateUp } = activateBackward(pass, rows, (dActivation) => {
      const down = { transposition: "nn", a: dOut.dgrad, weight: this.down } as const;
      this.#multiply(pass, { ...down, out: dActivation }, plan);
    });
    this.#queue(pass, { a: dOut.wgrad, b: input, weight: this.down }, plan);
    const up = { transposition: "nn", a: dGateUp.dgrad, weight: this.gateUp } as const;
    this.#multiply(pass, { ...up, out: call.dRows }, plan);
    const gathered = this.#gather(pass, source, call.input, plan, "dispatch");
    const b = wgradInput(pass, gathered, recipe, groups);
    this.#queue(pass, { a: dGateUp.wgrad, b, weight: this.gateUp }, plan);
  }

  /** The output's gradient of each dispatched row. */
  #dispatchGradient(pass: Pass, dOut: Operand, plan: DispatchPlan): OutputGradient {
    const { recipe } = this;
    const source = wgradSource(pass, recipe);
    const dgrad = this.#gather(pass, source, dOut, plan, "dispatchGradient");
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

  /** Queue an expert weight's gradient. */
  #queue(
    pass: Pass,
    work: { readonly a: Operand; readonly b: Operand; readonly weight: Parameter },
    { offsets }: DispatchPlan,
  ): void {
    const { a, b, weight } = work;
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
