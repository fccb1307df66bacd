/**
 * @file A transformer block: attention and feed-forward, each behind a norm and added to the
 * residual stream.
 *
 *     mid = x + MLA(RMSNorm(x)),   out = mid + FFN(RMSNorm(mid))
 *
 * Saved: x (by the caller), mid, and what both halves save. Norm outputs are recomputed where a
 * half has not cached its input and where the gate needs it. In
 * backward the stream's gradient is one tensor, updated in place: each half adds the gradient of
 * its input to the gradient of its output. After each half the queue of weight gradients may run
 * (`settle`).
 */
import { assert } from "../base/errors.ts";
import { castRows } from "../kernels/cast-rows/contract.ts";
import type { Operation } from "../parallel/communicator/communicator.ts";
import { finish, type Work } from "../parallel/communicator/work.ts";
import type { FloatType } from "../tensor/dtype.ts";
import type { Tensor } from "../tensor/tensor.ts";
import { isMoeLayer, type ModelConfig } from "./config.ts";
import { expertRanksOf } from "./expert-ranks.ts";
import type { ExpertShare } from "./expert-share.ts";
import { FeedForward, type FeedForwardSaved } from "./feed-forward.ts";
import { MlaLayer, type MlaSaved } from "./mla.ts";
import { MoeLayer, type MoeOptions, type MoeSaved } from "./moe.ts";
import { RmsNorm } from "./norm.ts";
import { blockName } from "./parameter-declarations.ts";
import type { ComputeType, ParameterSet } from "./parameters.ts";
import { copyToCompute, type Pass } from "./pass.ts";
import { isScaledRecipe } from "./precision-recipe.ts";

/** Dense or mixture of experts. */
export type FeedForwardHalf =
  | { readonly kind: "dense"; readonly layer: FeedForward }
  | { readonly kind: "moe"; readonly layer: MoeLayer };

type HalfSaved =
  | { readonly kind: "dense"; readonly state: FeedForwardSaved }
  | { readonly kind: "moe"; readonly state: MoeSaved };

export interface BlockSaved {
  readonly x: Tensor<FloatType>;
  readonly mid: Tensor<FloatType>;
  readonly attention: MlaSaved;
  readonly feedForward: HalfSaved;
}

/** The routing state of a block, or null if it is dense. */
export function moeStateOf({ feedForward }: BlockSaved): MoeSaved | null {
  return feedForward.kind === "moe" ? feedForward.state : null;
}

interface HalfBackward {
  /** null where the half has saved what it needs. */
  readonly input: Tensor<ComputeType> | null;
  readonly dOut: Tensor<ComputeType>;
  readonly dInput: Tensor<FloatType>;
}

/** The residual stream behind a half and before it. */
type Stream = Readonly<Record<"out" | "base", Tensor<FloatType>>>;

/** Work that waits for nobody. */
const NOTHING: Iterable<Operation> = [];

export interface BlockOptions extends Pick<MoeOptions, "bias"> {
  readonly layerIndex: number;
  /** Of the ranks that share the routed experts; left out where all are here. */
  readonly experts?: ExpertShare | undefined;
}

export class Block {
  readonly layerIndex: number;
  readonly attentionNorm: RmsNorm;
  readonly attention: MlaLayer;
  readonly feedForwardNorm: RmsNorm;
  readonly feedForward: FeedForwardHalf;

  constructor(
    config: ModelConfig,
    parameters: ParameterSet,
    { layerIndex, bias, experts }: BlockOptions,
  ) {
    const prefix = blockName(config, layerIndex);
    const norm = (name: string): RmsNorm =>
      new RmsNorm(parameters.get(`${prefix}.${name}`), config.rmsNormEps);
    this.layerIndex = layerIndex;
    this.attentionNorm = norm("attentionNorm");
    this.attention = new MlaLayer(config, parameters, `${prefix}.attention`);
    this.feedForwardNorm = norm("feedForwardNorm");
    const ranks = experts && expertRanksOf(experts, layerIndex);
    const moe = { prefix: `${prefix}.moe`, bias, ranks };
    this.feedForward = isMoeLayer(config, layerIndex)
      ? { kind: "moe", layer: new MoeLayer(config, parameters, moe) }
      : { kind: "dense", layer: new FeedForward(parameters, `${prefix}.feedForward`) };
  }

  /** Overwrites `out`; x must stay unchanged until backward. */
  forward(pass: Pass, x: Tensor<FloatType>, out: Tensor<FloatType>): BlockSaved {
    return finish(this.forwardWork(pass, x, out));
  }

  /** The same, yielding where it waits for other ranks. */
  *forwardWork(pass: Pass, x: Tensor<FloatType>, out: Tensor<FloatType>): Work<BlockSaved> {
    const { saved, scratch, device } = pass;
    const mid = saved.allocate(pass.floatType, [x.rows, x.columns]);
    castRows(device, { x, out: mid });
    const attention = this.#forwardAttention(pass, x, mid);
    using _mark = scratch.mark();
    const normed = this.feedForwardNorm.compute(pass, scratch, mid);
    const feedForward = yield* this.#forwardHalf(pass, normed, { out, base: mid });
    return { x, mid, attention, feedForward };
  }

  #forwardAttention(pass: Pass, x: Tensor<FloatType>, out: Tensor<FloatType>): MlaSaved {
    using _mark = pass.scratch.mark();
    const { recipe } = this.attention;
    const input = this.attentionNorm.layerInput(pass, x, { recipe, use: "linearInput" });
    return this.attention.forward(pass, input, out);
  }

  /** `dStream` enters as the gradient of the output and leaves as that of the input. */
  backward(pass: Pass, state: BlockSaved, dStream: Tensor<FloatType>): void {
    finish(this.backwardWork(pass, state, dStream));
  }

  /** The same, yielding where it waits for other ranks. */
  *backwardWork(pass: Pass, state: BlockSaved, dStream: Tensor<FloatType>): Work<void> {
    const { x, mid, attention } = state;
    const { feedForward: half } = state;
    const isWholeHalf = half.kind === "dense" && half.state.input !== null;
    const feedForward = { norm: this.feedForwardNorm, x: mid, dStream, hasInput: isWholeHalf };
    yield* this.#throughNorm(pass, feedForward, (call) => this.#backwardHalf(pass, half, call));
    const hasInput = attention.input !== null;
    const first = { norm: this.attentionNorm, x, dStream, hasInput };
    yield* this.#throughNorm(pass, first, (call) => {
      this.attention.backward(pass, attention, call);
      return NOTHING;
    });
  }

  /** Backward of one half: recompute its input, run it, add its gradient to the stream's. */
  *#throughNorm(
    pass: Pass,
    half: {
      readonly norm: RmsNorm;
      readonly x: Tensor<FloatType>;
      readonly dStream: Tensor<FloatType>;
      readonly hasInput: boolean;
    },
    backward: (call: HalfBackward) => Iterable<Operation>,
  ): Work<void> {
    const { norm, x, dStream, hasInput } = half;
    using _mark = pass.scratch.mark();
    const input = hasInput ? null : norm.compute(pass, pass.weightGrads.arena, x);
    // Plain products read a copy, for the stream's gradient changes before the queue runs; scaled
    // ones read codes that are made before it changes.
    const dOut = isScaledRecipe(this.attention.output.weight.recipe)
      ? dStream
      : copyToCompute(pass, pass.weightGrads.arena, dStream);
    const dInput = pass.scratch.allocate(pass.floatType, [x.rows, x.columns]);
    yield* backward({ input, dOut, dInput });
    norm.backward(pass, { x, dOut: dInput, dX: dStream, mode: "accumulate" });
    pass.weightGrads.settle();
  }

  *#forwardHalf(pass: Pass, x: Tensor<ComputeType>, { out, base }: Stream): Work<HalfSaved> {
    if (this.feedForward.kind === "moe") {
      const state = yield* this.feedForward.layer.forwardWork(pass, x, { out, base });
      return { kind: "moe", state };
    }
    castRows(pass.device, { x: base, out });
    return { kind: "dense", state: this.feedForward.layer.forward(pass, x, out) };
  }

  #backwardHalf(pass: Pass, saved: HalfSaved, call: HalfBackward): Iterable<Operation> {
    if (this.feedForward.kind === "moe" && saved.kind === "moe") {
      return this.feedForward.layer.backwardWork(pass, saved.state, call);
    }
    const dense = this.feedForward.kind === "dense" && saved.kind === "dense";
    assert(dense, `block ${this.layerIndex}: what was saved is not of this block's kind`);
    this.feedForward.layer.backward(pass, saved.state, { ...call, mode: "overwrite" });
    return NOTHING;
  }
}
