/**
 * @file A model of the DeepSeek-V3 family: its parameters, its layers, its memory, and what one can
 * ask of it.
 *
 * Memory is in four arenas: `model` (parameters, gradients, biases, RoPE tables; for life), and the
 * three of pass.ts. After the first step of a given size no memory is asked of the device. `arenas`
 * shows what each has used, and memory.ts predicts it.
 */
import { assert, defined } from "../base/errors.ts";
import type { Device } from "../device/device.ts";
import type { AttentionProducts } from "../kernels/attention/contract.ts";
import { Arena } from "../tensor/arena.ts";
import type { FloatType } from "../tensor/dtype.ts";
import type { Tensor } from "../tensor/tensor.ts";
import { Block, type BlockOptions } from "./block.ts";
import { countLayers, type ModelConfig, moeLayerIndices, validateConfig } from "./config.ts";
import { Embedding } from "./embedding.ts";
import type { ExpertShare } from "./expert-share.ts";
import { Head } from "./head.ts";
import type {
  Batch,
  BrokenStream,
  GateBias,
  ModelOptions,
  StepOptions,
  StepResult,
  TrainableModel,
} from "./model-types.ts";
import { MtpModule } from "./mtp.ts";
import { RmsNorm } from "./norm.ts";
import { arithmeticOf, assertBatch, openPass, type PassFrame } from "./open-pass.ts";
import { declareBuffers } from "./parameter-declarations.ts";
import { type ComputeType, ParameterSet } from "./parameters.ts";
import type { Pass } from "./pass.ts";
import type { PrecisionRecipe } from "./precision-recipe.ts";
import { RecordedStep } from "./recorded-step.ts";
import { RopeTableCache } from "./rope.ts";
import { findBrokenStream } from "./stream-check.ts";
import { type ModelLayers, readResult, runEvaluation, runTrainingPass } from "./training-pass.ts";
import type { WeightFormat } from "./weight-format.ts";
import { WeightGradQueue } from "./weight-grad-queue.ts";

export interface ModelArenas {
  readonly model: Arena;
  readonly saved: Arena;
  readonly scratch: Arena;
  readonly weightGrads: Arena;
}

export class Model implements TrainableModel {
  readonly config: ModelConfig;
  readonly recipe: PrecisionRecipe;
  readonly floatType: FloatType;
  readonly computeType: ComputeType;
  readonly attention: AttentionProducts;
  /** What is kept of the weights; null where there are master values. */
  readonly weights: WeightFormat | null;
  readonly parameters: ParameterSet;
  readonly gateBiases: readonly GateBias[];
  readonly moeLayerIndices: readonly number[];
  readonly layers: ModelLayers;
  readonly arenas: ModelArenas;
  readonly ropeTables: RopeTableCache;
  /** A schedule may defer it; a step ends with it empty all the same. */
  readonly weightGrads: WeightGradQueue;
  readonly #frame: PassFrame;
  readonly #recorded: RecordedStep;
  readonly #hasExpertRanks: boolean;

  /** Allocates the parameters and, given a seed, initialises them. */
  constructor(device: Device, config: ModelConfig, options: ModelOptions) {
    this.config = validateConfig(config);
    const arithmetic = arithmeticOf(options);
    this.recipe = arithmetic.recipe;
    this.floatType = arithmetic.floatType;
    this.computeType = arithmetic.computeType;
    this.attention = arithmetic.attention;
    const arena = (name: string): Arena => new Arena(device.memory, name);
    this.arenas = {
      model: arena("model"),
      saved: arena("saved"),
      scratch: arena("scratch"),
      weightGrads: arena("weight gradients"),
    };
    this.weights = options.weights ?? null;
    assert(
      this.weights === null || (this.computeType === "bf16" && options.gradients === false),
      "weights are kept in a format of their own for bf16 products without gradients alone",
    );
    this.parameters = new ParameterSet(device, this.arenas.model, config, {
      recipe: this.recipe,
      gradients: options.gradients ?? true,
      weights: options.weights,
      heldExperts: options.experts?.held,
    });
    if (options.seed !== null) this.parameters.initialize(options.seed, config.initializerRange);
    const biases = makeBiases(this.arenas.model, config, this.floatType);
    this.gateBiases = declareBuffers(config).map(({ layerIndex }) => ({
      layerIndex,
      bias: defined(biases[layerIndex], `bias of layer ${layerIndex}`),
    }));
    this.moeLayerIndices = moeLayerIndices(config);
    this.layers = makeLayers(config, this.parameters, {
      biases,
      experts: options.experts,
    });
    this.ropeTables = new RopeTableCache(this.arenas.model, config, this.floatType);
    this.#frame = { ...arithmetic, device, config, ropeTables: this.ropeTables };
    this.weightGrads = new WeightGradQueue(device, this.arenas.weightGrads);
    this.#recorded = new RecordedStep(device);
    this.#hasExpertRanks = options.experts !== undefined;
  }

  forwardBackward(batch: Batch, options: StepOptions): StepResult {
    assertBatch(this.config, batch);
    const key = this.#keyOf(batch, options);
    using _mark = this.arenas.saved.mark();
    const pass = this.#recorded.run(key, batch, () => {
      const opened = this.#openPass(batch, options.balanceWeight * (options.lossScale ?? 1));
      return runTrainingPass(this.layers, opened, batch, options);
    });
    return readResult(pass, options);
  }

  evaluate(batch: Batch): Float32Array {
    using _mark = this.arenas.saved.mark();
    using _scratch = this.arenas.scratch.mark();
    return runEvaluation(this.layers, this.#openPass(batch, 0), batch);
  }

  findBrokenStream(batch: Batch): BrokenStream | undefined {
    using _mark = this.arenas.saved.mark();
    using _scratch = this.arenas.scratch.mark();
    const { layers, config } = this;
    return findBrokenStream(layers, this.#openPass(batch, 0), { batch, config });
  }

  /** What the launches of a pass depend on besides tokens; null where they depend on more. */
  #keyOf({ numSequences, seqLength }: Batch, options: StepOptions): string | null {
    const { saved, scratch, weightGrads } = this.arenas;
    const isAlone = [saved, scratch, weightGrads].every(({ liveBytes }) => liveBytes === 0);
    // Under an outlier factor, what is quantised depends on values that this thread reads.
    const looksAtValues = this.recipe.outlierFactor !== 0 || this.#hasExpertRanks;
    if (looksAtValues || !isAlone) return null;
    return JSON.stringify([numSequences, seqLength, this.weightGrads.deferred, options]);
  }

  #openPass(batch: Batch, balanceScale: number): Pass {
    const { saved, scratch } = this.arenas;
    const memory = { saved, scratch, weightGrads: this.weightGrads };
    return openPass(this.#frame, memory, batch, balanceScale);
  }
}

/** A bias for each layer: zeros, to be moved by training where the method has one. */
function makeBiases(
  arena: Arena,
  config: ModelConfig,
  floatType: FloatType,
): readonly Tensor<FloatType>[] {
  return Array.from({ length: countLayers(config) }, () =>
    arena.allocateZeros(floatType, [1, config.numRoutedExperts]),
  );
}

function makeLayers(
  config: ModelConfig,
  parameters: ParameterSet,
  of: {
    readonly biases: readonly Tensor<FloatType>[];
    readonly experts: ExpertShare | undefined;
  },
): ModelLayers {
  const { biases, experts } = of;
  const routingOf = (layerIndex: number): Omit<BlockOptions, "layerIndex"> => ({
    bias: defined(biases[layerIndex], `bias of layer ${layerIndex}`),
    experts,
  });
  const embedding = new Embedding(parameters.get("embedding"));
  return {
    embedding,
    blocks: Array.from(
      { length: config.numLayers },
      (_, layerIndex) => new Block(config, parameters, { layerIndex, ...routingOf(layerIndex) }),
    ),
    norm: new RmsNorm(parameters.get("norm"), config.rmsNormEps),
    head: new Head(parameters.get(config.tieWordEmbeddings ? "embedding" : "head")),
    mtpModules: Array.from({ length: config.numMtpModules }, (_, moduleIndex) => {
      const routing = routingOf(config.numLayers + moduleIndex);
      return new MtpModule(config, parameters, { moduleIndex, ...routing, embedding });
    }),
  };
}
