/**
 * @file A mixture-of-experts layer: every token through its K chosen experts and the shared ones;
 * forward and backward.
 *
 *     out_TD += Σ_k w_k · expert_k(x)  + sharedExperts(x)
 *
 *   T tokens, R = T·K rows sorted by expert, no token dropped
 *
 * The weight multiplies the activation instead of the expert's output: the down product is linear,
 * so the sum is the same, and its gradient Σ_i dh · silu(gate) · up needs no expert output, which
 * is therefore never kept. Saved: what the experts save (experts.ts) and, under a scaled recipe, x
 * (D), as the recipe caches it; the gate's scores and choice, the plan (2K integers). Scaled rows
 * are dispatched as codes and scales; the shared experts read the same codes. The routed experts
 * are all here, or on several ranks (expert-ranks.ts). Source: DeepSeek-V3 report §2.1.2, §3.2.3.
 */
import { assert, defined } from "../base/errors.ts";
import { accumulate } from "../kernels/accumulate/contract.ts";
import { castRows } from "../kernels/cast-rows/contract.ts";
import { combineRows } from "../kernels/gather/contract.ts";
import { finish, type Work } from "../parallel/communicator/work.ts";
import type { FloatType } from "../tensor/dtype.ts";
import type { Tensor } from "../tensor/tensor.ts";
import type { ModelConfig } from "./config.ts";
import { makeDispatchPlan } from "./dispatch-plan.ts";
import {
  announceChoice,
  backwardOverRanks,
  checkRecipeOverRanks,
  type ExpertRanks,
  forwardByChoice,
  forwardOverRanks,
  type RemoteSaved,
} from "./expert-ranks.ts";
import { type ExpertsSaved, RoutedExperts, type Sum } from "./experts.ts";
import { FeedForward, type FeedForwardSaved } from "./feed-forward.ts";
import { Gate, type GateSaved } from "./gate.ts";
import type { WriteMode } from "./linear.ts";
import { layerInput, type Operand, operandOf } from "./operand.ts";
import type { ComputeType, ParameterSet } from "./parameters.ts";
import { amid, type Pass } from "./pass.ts";

type RoutedSaved =
  | { readonly kind: "here"; readonly experts: ExpertsSaved }
  | ({ readonly kind: "overRanks" } & RemoteSaved)
  /** Results that come choice by choice are for inference alone. */
  | { readonly kind: "notKept" };

export interface MoeSaved {
  readonly gate: GateSaved;
  /** null where backward makes it again from its input. */
  readonly input: Operand | null;
  readonly routed: RoutedSaved;
  readonly shared: FeedForwardSaved | null;
}

export interface MoeBackward {
  /** The gate reads it whatever was saved. */
  readonly input: Tensor<ComputeType> | null;
  readonly dOut: Tensor<ComputeType>;
  /** Overwritten. */
  readonly dInput: Tensor<FloatType>;
}

export interface MoeOptions {
  readonly prefix: string;
  readonly bias: Tensor<FloatType>;
  /** The ranks that share the routed experts; left out where all are here. */
  readonly ranks?: ExpertRanks | undefined;
}

export class MoeLayer {
  readonly gate: Gate;
  readonly experts: RoutedExperts;
  readonly sharedExperts: FeedForward | null;
  readonly #ranks: ExpertRanks | null;

  constructor(config: ModelConfig, parameters: ParameterSet, options: MoeOptions) {
    const { prefix, bias, ranks } = options;
    this.gate = new Gate(config, parameters.get(`${prefix}.gate`), bias);
    this.experts = new RoutedExperts(parameters, `${prefix}.experts`);
    this.sharedExperts =
      config.numSharedExperts === 0 ? null : new FeedForward(parameters, `${prefix}.sharedExperts`);
    this.#ranks = ranks ?? null;
    if (ranks !== undefined) checkRecipeOverRanks(this.experts.recipe);
  }

  /** Adds to `out`. */
  forward(pass: Pass, x: Tensor<ComputeType>, out: Tensor<FloatType>): MoeSaved {
    return finish(this.forwardWork(pass, x, { out }));
  }

  /** The same, yielding where it waits for other ranks. */
  *forwardWork(pass: Pass, x: Tensor<ComputeType>, { out, base = out }: Sum): Work<MoeSaved> {
    const { recipe } = this.experts;
    const gate = this.gate.forward(pass, x);
    const { choice, weight } = gate;
    const ranks = this.#ranks;
    using _mark = pass.scratch.mark();
    const announced = ranks === null || ranks.byChoice ? null : announceChoice(pass, ranks, choice);
    const { operand, cached } = layerInput(pass, x, { recipe, use: "dispatch" });
    let shared: FeedForwardSaved | null = null;
    const forwardShared = (): void => {
      shared = this.sharedExperts?.forward(pass, operand, out) ?? null;
    };
    if (ranks === null) {
      const plan = makeDispatchPlan(pass, choice, this.experts.numExperts);
      const tokens = { plan, input: operand, weight };
      const experts = this.experts.forward(pass, tokens, { out, base });
      forwardShared();
      return { gate, input: cached, routed: { kind: "here", experts }, shared };
    }
    if (base !== out) castRows(pass.device, { x: base, out });
    if (announced === null) {
      const call = { choice, weight, input: operand, out, offsets: pass.nextOffsets?.() };
      yield* amid(pass, (within) => forwardByChoice(within, ranks, this.experts, call));
      forwardShared();
      return { gate, input: cached, routed: { kind: "notKept" }, shared };
    }
    const tokens = { announced, weight, input: operand };
    const remote = yield* forwardOverRanks(pass, ranks.exchange, this.experts, {
      tokens,
      out,
      meanwhile: forwardShared,
    });
    return { gate, input: cached, routed: { kind: "overRanks", ...remote }, shared };
  }

  backward(pass: Pass, state: MoeSaved, call: MoeBackward): void {
    finish(this.backwardWork(pass, state, call));
  }

  /** The same, yielding where it waits for other ranks. */
  *backwardWork(pass: Pass, state: MoeSaved, call: MoeBackward): Work<void> {
    const { scratch, floatType } = pass;
    const { recipe } = this.experts;
    const { gate, shared } = state;
    const { dOut, dInput } = call;
    using _mark = scratch.mark();
    const x = defined(call.input, "the input of a mixture of experts");
    const operand = state.input ?? operandOf(pass, scratch, x, { recipe, use: "dispatch" });
    const dWeight = scratch.allocate(floatType, gate.weight.shape);
    const gradient = operandOf(pass, scratch, dOut, { recipe, use: "dispatchGradient" });
    const backwardShared = (mode: WriteMode): void => {
      if (this.sharedExperts === null || shared === null) return;
      this.sharedExperts.backward(pass, shared, { input: operand, dOut, dInput, mode });
    };
    const addRouted = yield* this.#backwardRouted(pass, state.routed, {
      input: operand,
      dOut: gradient,
      dWeight,
      meanwhile: () => backwardShared("overwrite"),
    });
    const isHere = state.routed.kind === "here";
    const mode = isHere || shared === null ? "overwrite" : "accumulate";
    this.gate.backward(pass, gate, { input: x, dWeight, dInput, mode });
    addRouted(dInput);
    if (isHere) backwardShared("accumulate");
  }

  /** What adds the gradient of the input to another. */
  *#backwardRouted(
    pass: Pass,
    state: RoutedSaved,
    call: {
      readonly input: Operand;
      readonly dOut: Operand;
      readonly dWeight: Tensor<FloatType>;
      /** Runs where ranks are waited for. */
      readonly meanwhile: () => void;
    },
  ): Work<(dInput: Tensor<FloatType>) => void> {
    const { device } = pass;
    if (state.kind === "here") {
      const src = this.experts.backward(pass, state.experts, call);
      const index = state.experts.plan.rowOfChoice;
      return (out) => combineRows(device, { src, index, out });
    }
    assert(state.kind !== "notKept", "experts whose results come choice by choice only infer");
    const { exchange } = defined(this.#ranks, "the ranks of the experts");
    const { dOut, dWeight, meanwhile } = call;
    const remote = { state, gradients: { dOut, dWeight }, meanwhile };
    const x = yield* backwardOverRanks(pass, exchange, this.experts, remote);
    return (out) => accumulate(device, { x, scale: 1, out });
  }
}
