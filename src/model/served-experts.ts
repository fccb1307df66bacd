/**
 * @file What a rank holds that only serves experts to another one: its share of the routed experts
 * of every MoE layer, MTP modules' included, and nothing else of the model.
 */
import { assert, defined } from "../base/errors.ts";
import type { Device } from "../device/device.ts";
import type { Work } from "../parallel/communicator/work.ts";
import { Arena } from "../tensor/arena.ts";
import { type ModelConfig, moeLayerIndices } from "./config.ts";
import { serveExperts } from "./expert-ranks.ts";
import type { ExpertShare } from "./expert-share.ts";
import { RoutedExperts } from "./experts.ts";
import type { GateBias, ModelOptions } from "./model-types.ts";
import { arithmeticOf, openPass, type PassFrame } from "./open-pass.ts";
import { blockName, declareParameters } from "./parameter-declarations.ts";
import { ParameterSet } from "./parameters.ts";
import type { Pass } from "./pass.ts";
import { RopeTableCache } from "./rope.ts";
import type { WeightFormat } from "./weight-format.ts";
import { WeightGradQueue } from "./weight-grad-queue.ts";

type PassMemory = Pick<Pass, "saved" | "scratch" | "weightGrads">;

export type ServedOptions = Pick<ModelOptions, "precision" | "weights">;

export class ServedExperts {
  readonly config: ModelConfig;
  readonly weights: WeightFormat | null;
  readonly parameters: ParameterSet;
  /** None: the rank that has the tokens chooses. */
  readonly gateBiases: readonly GateBias[] = [];
  readonly moeLayerIndices: readonly number[];
  readonly #share: ExpertShare;
  readonly #frame: PassFrame;
  readonly #layers: ReadonlyMap<number, RoutedExperts>;
  /** Of each micro-batch that is under way. */
  readonly #memory: readonly [PassMemory, PassMemory];

  /** Values are zero until a checkpoint fills them. */
  constructor(device: Device, config: ModelConfig, share: ExpertShare, options: ServedOptions) {
    assert(share.byChoice, "only a model that infers is served experts");
    const arithmetic = arithmeticOf({ ...options, seed: null });
    const arena = (name: string): Arena => new Arena(device.memory, name);
    const kept = arena("experts");
    const experts = declareParameters(config).filter(({ role }) => role === "experts");
    this.config = config;
    this.weights = options.weights ?? null;
    this.parameters = new ParameterSet(device, kept, config, {
      recipe: arithmetic.recipe,
      gradients: false,
      weights: options.weights,
      part: { names: new Set(experts.map(({ name }) => name)), copies: new Set() },
      heldExperts: share.held,
    });
    this.moeLayerIndices = moeLayerIndices(config);
    this.#share = share;
    this.#layers = new Map(
      this.moeLayerIndices.map((layerIndex) => {
        const prefix = `${blockName(config, layerIndex)}.moe.experts`;
        return [layerIndex, new RoutedExperts(this.parameters, prefix)];
      }),
    );
    const ropeTables = new RopeTableCache(kept, config, arithmetic.floatType);
    this.#frame = { ...arithmetic, device, config, ropeTables };
    // Layers want one; nothing is put into it.
    const weightGrads = new WeightGradQueue(device, arena("no gradients"));
    const memory = (): PassMemory => {
      return { saved: arena("saved"), scratch: arena("scratch"), weightGrads };
    };
    this.#memory = [memory(), memory()];
  }

  /**
   * Collective: this rank's part of some layers, for one micro-batch of the rank that has the
   * tokens. Yields once results are on their way back, when experts of another can be served.
   */
  *serve(layerIndices: readonly number[], microBatch: 0 | 1): Work<void> {
    const memory = this.#memory[microBatch];
    for (const layerIndex of layerIndices) {
      const experts = defined(this.#layers.get(layerIndex), `experts of layer ${layerIndex}`);
      using _saved = memory.saved.mark();
      using _scratch = memory.scratch.mark();
      const pass = openPass(this.#frame, memory, nobodysToken(this.config), 0);
      yield* serveExperts(pass, this.#share.exchange, experts);
    }
  }
}

/** A pass is over some batch; experts look at the tokens that come. */
function nobodysToken({ numMtpModules }: ModelConfig) {
  return { tokens: new Int32Array(2 + numMtpModules), numSequences: 1, seqLength: 1 };
}
