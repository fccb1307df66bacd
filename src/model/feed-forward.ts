/**
 * @file The gated feed-forward network of dense layers and of the shared experts.
 *
 *     [gate | up]_T2I = x_TD · W_gateUpᵀ
 *     out_TD += (silu(gate) ⊙ up) · W_downᵀ
 *
 * Saved: gateUp (2I) in the float type. Recomputed in backward: the activation (I), one pass over
 * gateUp. Source: DeepSeek-V3 report §2; shared experts are one such network of numSharedExperts ·
 * moeIntermediateDim columns.
 */
import { divExact } from "../base/integers.ts";
import { swiglu, swigluBackward } from "../kernels/swiglu/contract.ts";
import type { FloatType } from "../tensor/dtype.ts";
import type { Tensor } from "../tensor/tensor.ts";
import { Linear, type WriteMode } from "./linear.ts";
import type { ComputeType, ParameterSet } from "./parameters.ts";
import type { Pass } from "./pass.ts";

export interface FeedForwardSaved {
  readonly gateUp: Tensor<FloatType>;
}

export interface FeedForwardBackward {
  readonly input: Tensor<ComputeType>;
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
  forward(pass: Pass, x: Tensor<ComputeType>, out: Tensor<FloatType>): FeedForwardSaved {
    const { saved, scratch, floatType, computeType, device } = pass;
    const columns = this.gateUp.weight.shape[0];
    const gateUp = saved.allocate(floatType, [x.rows, columns]);
    this.gateUp.forward(pass, x, gateUp, "overwrite");
    using _mark = scratch.mark();
    const activation = scratch.allocate(computeType, [x.rows, divExact(columns, 2)]);
    swiglu(device, { gateUp, out: activation });
    this.down.forward(pass, activation, out, "accumulate");
    return { gateUp };
  }

  backward(pass: Pass, { gateUp }: FeedForwardSaved, call: FeedForwardBackward): void {
    const { input, dOut, dInput, mode } = call;
    const { scratch, weightGrads, floatType, computeType, device } = pass;
    const pending = weightGrads.arena;
    const shape = [gateUp.rows, divExact(gateUp.columns, 2)];
    const activation = pending.allocate(computeType, shape);
    swiglu(device, { gateUp, out: activation });
    const dGateUp = pending.allocate(computeType, [gateUp.rows, gateUp.columns]);
    {
      using _mark = scratch.mark();
      const dActivation = scratch.allocate(floatType, shape);
      const dInput = dActivation;
      this.down.backward(pass, { input: activation, dOut, dInput, mode: "overwrite" });
      swigluBackward(device, { gateUp, dOut: dActivation, dGateUp });
    }
    this.gateUp.backward(pass, { input, dOut: dGateUp, dInput, mode });
  }
}
