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
import { divExact } from "../base/integers.ts";
import { swiglu, swigluBackward } from "../kernels/swiglu/contract.ts";
import type { FloatType } from "../tensor/dtype.ts";
import type { Tensor } from "../tensor/tensor.ts";
import { Linear, type WriteMode } from "./linear.ts";
import {
  allocateCached,
  cacheAs,
  layerInput,
  type Operand,
  openCached,
  operandOf,
  outputGradient,
  wgradInput,
  wgradSource,
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
    const { scratch, computeType, device } = pass;
    const { shape, recipe } = this.gateUp.weight;
    using _mark = scratch.mark();
    const { operand, cached } = layerInput(pass, x, { recipe, use: "linearInput" });
    const rule = recipe.tensors.swigluInput;
    const gateUp = allocateCached(pass, rule, [x.rows, shape[0]]);
    this.gateUp.forward(pass, operand, gateUp, "overwrite");
    const kept = cacheAs(pass, gateUp, rule);
    const activation = scratch.allocate(computeType, [x.rows, divExact(shape[0], 2)]);
    swiglu(device, { gateUp, out: activation });
    const a = operandOf(pass, scratch, activation, { recipe, use: "swigluOutput" });
    this.down.forward(pass, a, out, "accumulate");
    return { input: cached, gateUp: kept };
  }

  backward(pass: Pass, state: FeedForwardSaved, call: FeedForwardBackward): void {
    const { dInput, mode } = call;
    const { scratch, floatType, computeType, device } = pass;
    const { recipe } = this.gateUp.weight;
    const source = wgradSource(pass, recipe);
    using _mark = scratch.mark();
    const gateUp = openCached(pass, state.gateUp);
    const shape = [gateUp.rows, divExact(gateUp.columns, 2)];
    const activation = source.allocate(computeType, shape);
    const dGateUp = source.allocate(computeType, [gateUp.rows, gateUp.columns]);
    {
      using _inner = scratch.mark();
      const dActivation = scratch.allocate(floatType, shape);
      const dOut = outputGradient(pass, call.dOut, recipe);
      this.down.backwardInput(pass, { dOut, dInput: dActivation, mode: "overwrite" });
      swigluBackward(device, { gateUp, dOut: dActivation, dGateUp, activation });
      this.down.queueWeightGrad(pass, { input: wgradInput(pass, activation, recipe), dOut });
    }
    const input = defined(state.input ?? call.input, "the input of a feed-forward network");
    this.gateUp.backward(pass, {
      input: wgradInput(pass, input, recipe),
      dOut: outputGradient(pass, dGateUp, recipe),
      dInput,
      mode,
    });
  }
}
