/**
 * @file The layers of one rank of a pipeline: its share of the parameters, and its stages.
 *
 * A rank may hold several parts of the model: two in a bidirectional pipeline, or several thin
 * ones. Their parameters lie in one set. Where the first part and the last one meet on a rank they
 * read one embedding, but the last part's gradient of it has a place of its own, `exitGradient`:
 * the two are added after the step (`joinGradients`), so that the sum does not depend on the
 * schedule. Initial values are those of the whole model for the same seed.
 */
import { defined } from "../../base/errors.ts";
import type { Device } from "../../device/device.ts";
import { accumulate } from "../../kernels/accumulate/contract.ts";
import { Arena } from "../../tensor/arena.ts";
import type { FloatType } from "../../tensor/dtype.ts";
import type { Tensor } from "../../tensor/tensor.ts";
import { view } from "../../tensor/view.ts";
import { Block } from "../block.ts";
import { isMoeLayer, type ModelConfig, validateConfig } from "../config.ts";
import { Embedding } from "../embedding.ts";
import type { ExpertShare } from "../expert-share.ts";
import { Head } from "../head.ts";
import type { GateBias, ModelOptions } from "../model-types.ts";
import { MtpModule } from "../mtp.ts";
import { RmsNorm } from "../norm.ts";
import { arithmeticOf, type PassFrame } from "../open-pass.ts";
import { type Parameter, ParameterSet } from "../parameters.ts";
import type { ExitLayers, PartLayers } from "../part-pass.ts";
import type { PrecisionRecipe } from "../precision-recipe.ts";
import { RopeTableCache } from "../rope.ts";
import {
  exitReadsEmbedding,
  type ModelPart,
  partLayerIndices,
  partParameters,
} from "./model-part.ts";
import { ModelStage, type StageOptions, type StageStep } from "./model-stage.ts";

export class PartModel {
  readonly config: ModelConfig;
  readonly recipe: PrecisionRecipe;
  readonly parameters: ParameterSet;
  /** Of the layers held here. */
  readonly gateBiases: readonly GateBias[];
  /** By the number of the stage. */
  readonly stages: ReadonlyMap<number, ModelStage>;
  /** What the stages together have put into the embedding's gradient as an exit. */
  readonly #exitGradient: Tensor<FloatType> | null;
  readonly #experts: ExpertShare | undefined;
  readonly #device: Device;
  readonly #arena: Arena;
  readonly #biases = new Map<number, Tensor<FloatType>>();

  /** `parts` by the number of the stage; `copies` are parameters that another rank moves. */
  constructor(
    device: Device,
    config: ModelConfig,
    options: ModelOptions & {
      readonly parts: ReadonlyMap<number, ModelPart>;
      readonly copies: ReadonlySet<string>;
    },
  ) {
    const { parts, copies, seed, experts } = options;
    this.config = validateConfig(config);
    this.#experts = experts;
    this.#device = device;
    this.#arena = new Arena(device.memory, "model");
    const arithmetic = arithmeticOf(options);
    this.recipe = arithmetic.recipe;
    const held = [...parts.values()];
    const names = new Set(held.flatMap((part) => [...partParameters(config, part)]));
    this.parameters = new ParameterSet(device, this.#arena, config, {
      recipe: this.recipe,
      gradients: true,
      part: { names, copies },
      heldExperts: experts?.held,
    });
    if (seed !== null) this.parameters.initialize(seed, config.initializerRange);
    for (const layerIndex of held.flatMap((part) => partLayerIndices(config, part))) {
      const bias = this.#arena.allocateZeros(arithmetic.floatType, [1, config.numRoutedExperts]);
      this.#biases.set(layerIndex, bias);
    }
    this.gateBiases = this.#listGateBiases();
    const meets =
      held.some(({ hasEmbedding }) => hasEmbedding) && held.some(({ hasExit }) => hasExit);
    this.#exitGradient = meets && exitReadsEmbedding(config) ? this.#likeEmbedding() : null;
    const ropeTables = new RopeTableCache(this.#arena, config, arithmetic.floatType);
    const frame: PassFrame = { ...arithmetic, device, config, ropeTables };
    const stageOptions: StageOptions = {
      scratch: {
        forward: new Arena(device.memory, "scratch"),
        backward: new Arena(device.memory, "scratch of backward"),
      },
      waits: experts !== undefined,
    };
    this.stages = new Map(
      [...parts].map(([stage, part]) => [
        stage,
        new ModelStage(frame, this.#layersOf(part), stageOptions),
      ]),
    );
  }

  /** Gradients are zero, and what follows is of this step. */
  begin(step: StageStep): void {
    this.parameters.zeroGradients();
    if (this.#exitGradient !== null) view(this.#exitGradient).fill(0);
    for (const stage of this.stages.values()) stage.begin(step);
  }

  /** After the last backward: the exit's gradient of the embedding joins that of the look-ups. */
  joinGradients(): void {
    if (this.#exitGradient === null) return;
    const out = this.parameters.get("embedding").gradient;
    accumulate(this.#device, { x: this.#exitGradient, scale: 1, out });
  }

  #likeEmbedding(): Tensor<FloatType> {
    const { value, shape } = this.parameters.get("embedding");
    return this.#arena.allocateZeros(value.dtype, shape);
  }

  #listGateBiases(): readonly GateBias[] {
    if (this.config.topkMethod !== "noaux_tc") return [];
    return [...this.#biases]
      .filter(([layerIndex]) => isMoeLayer(this.config, layerIndex))
      .map(([layerIndex, bias]) => ({ layerIndex, bias }))
      .toSorted((a, b) => a.layerIndex - b.layerIndex);
  }

  #layersOf(part: ModelPart): PartLayers {
    const { config, parameters } = this;
    const { firstBlock, endBlock } = part;
    const blocks = Array.from({ length: endBlock - firstBlock }, (_, index) => {
      const layerIndex = firstBlock + index;
      const bias = this.#biasOf(layerIndex);
      return new Block(config, parameters, { layerIndex, bias, experts: this.#experts });
    });
    return {
      embedding: part.hasEmbedding ? new Embedding(parameters.get("embedding")) : null,
      blocks,
      exit: part.hasExit ? this.#exitLayers() : null,
    };
  }

  #exitLayers(): ExitLayers {
    const { config, parameters } = this;
    const norm = new RmsNorm(parameters.get("norm"), config.rmsNormEps);
    const table = exitReadsEmbedding(config) ? this.#exitTable() : null;
    const tied = (): Parameter => defined(table, "the embedding");
    return {
      norm,
      head: new Head(config.tieWordEmbeddings ? tied() : parameters.get("head")),
      mtpModules: Array.from({ length: config.numMtpModules }, (_, moduleIndex) => {
        const bias = this.#biasOf(config.numLayers + moduleIndex);
        const embedding = new Embedding(tied());
        const experts = this.#experts;
        return new MtpModule(config, parameters, { moduleIndex, bias, embedding, experts });
      }),
    };
  }

  /** The embedding as the exit sees it. */
  #exitTable(): Parameter {
    const table = this.parameters.get("embedding");
    return this.#exitGradient === null ? table : { ...table, gradient: this.#exitGradient };
  }

  #biasOf(layerIndex: number): Tensor<FloatType> {
    return defined(this.#biases.get(layerIndex), `bias of layer ${layerIndex}`);
  }
}
