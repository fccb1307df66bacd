/**
 * @file The gated feed-forward network of dense layers and of the shared experts.
 *
 *     [gate | up]_T2I = x_TD · W_gateUpᵀ
 *     out_TD += (silu(gate) ⊙ up) · W_downᵀ
 *
 * Saved: gateUp (2I), and under a scaled recipe x (D), both as the recipe caches them. Recomputed
 * in backward: the activation (I), one pass over gateUp. Source: DeepSeek-V3 report §2; shared
 * experts are one such network of numSharedExperts · moeIntermediateDim columns.
 */

import { defined } from "../base/errors.ts";
import type { FloatType } from "../tensor/dtype.ts";
import type { Tensor } from "../tensor/tensor.ts";
import { activate, activateBackward } from "./gated-activation.ts";
import { Linear, type WriteMode } from "./linear.ts";
import {
  allocateCached,
  layerInput,
  type Operand,
  type OutputGradient,
  outputGradient,
  wgradInput,
} from "./operand.ts";
import type { ComputeType, ParameterSet } from "./parameters.ts";
import type { Pass } from "./pass.ts";

export interface FeedForwardSaved {
  /** null where backward is given it. */
  readonly input: Operand | null;
  readonly gateUp: Operand;
}

export interface FeedForwardBackward {
  /** null where it was saved. */
  readonly input: Operand | null;
  readonly dOut: Tensor<ComputeType>;
  readonly dInput: Tensor<FloatType>;
  readonly mode: WriteMode;
}

export class FeedForward {
  readonly gateUp: Linear;
  readonly down: Linear;

  constructor(parameters: ParameterSet, prefix: string) {
    this.gateUp = new Linear(parameters.get(`${prefix}.gateUp`));
    this.down = new Linear(parameters.get(`${prefix}.down`));
  }

  /** Adds to `out`. */
  forward(pass: Pass, x: Operand, out: Tensor<FloatType>): FeedForwardSaved {
    const { scratch } = pass;
    const { shape, recipe } = this.gateUp.weight;
    using _mark = scratch.mark();
    const { operand, cached } = layerInput(pass, x, { recipe, use: "linearInput" });
    const rule = recipe.tensors.swigluInput;
    const gateUp = allocateCached(pass, rule, [x.rows, shape[0]]);
    this.gateUp.forward(pass, operand, gateUp, "overwrite");
    const { kept, activation } = activate(pass, { gateUp, recipe });
    this.down.forward(pass, activation, out, "accumulate");
    return { input: cached, gateUp: kept };
  }

  backward(pass: Pass, state: FeedForwardSaved, call: FeedForwardBackward): void {
    const { dInput, mode } = call;
    const { recipe } = this.gateUp.weight;
    using _mark = pass.scratch.mark();
    let dOut: OutputGradient | undefined;
    const rows = { gateUp: state.gateUp, recipe };
    const { input: activation, dGateUp } = activateBackward(pass, rows, (dActivation) => {
      dOut = outputGradient(pass, call.dOut, recipe);
      this.down.backwardInput(pass, { dOut, dInput: dActivation, mode: "overwrite" });
    });
    this.down.queueWeightGrad(pass, {
      input: activation,
      dOut: defined(dOut, "the gradient of a feed-forward network's output"),
    });
    const input = defined(state.input ?? call.input, "the input of a feed-forward network");
    this.gateUp.backward(pass, {
      input: wgradInput(pass, input, recipe),
      dOut: dGateUp,
      dInput,
      mode,
    });
  }
}
