/**
 * @file Everything a training run can be told, with the meaning of each setting and how it is
 * checked.
 *
 * Settings come from a preset, then a JSON file that may leave fields out, then `--set key=value`
 * with dotted names; a run folder's config.json holds the result with every field written out, and
 * is itself such a file. What a run is trained on and for how long are settings too, so that a run
 * can be repeated from its config.json alone.
 */
import { OperationalError } from "../base/errors.ts";
import {
  type ModelConfig,
  type RopeScaling,
  SCORINGS,
  TOPK_METHODS,
  validateConfig,
} from "../model/config.ts";
import { type PrecisionRecipe, validateRecipe } from "../model/precision-recipe.ts";
import type { Preset } from "../model/presets.ts";
import type { BatchRamp, Budget } from "./budget.ts";
import type { AdamWSettings } from "./optimizer/adamw.ts";
import { expandRecipe, RECIPE_SCHEMA } from "./recipe/recipe-settings.ts";
import { RECIPES } from "./recipes.ts";
import {
  DECAY_CURVES,
  LEARNING_RATE_SHAPES,
  type LearningRateSettings,
  type SwitchedValue,
} from "./schedule.ts";
import {
  choice,
  integer,
  orNull,
  overlay,
  parseAssignment,
  real,
  type Schema,
  texts,
  whole,
  yesOrNo,
} from "./settings-schema.ts";

export const OPTIMIZERS = ["adamw", "muon"] as const;
/** "fp8-ue8m0" is FP8 with power-of-two scales. */
export const CHECKPOINT_DTYPES = ["bf16", "f32", "fp8", "fp8-ue8m0"] as const;
export type CheckpointDtype = (typeof CHECKPOINT_DTYPES)[number];

export interface TrainingSettings {
  /** The one source of all randomness. */
  readonly seed: number;
  /** `vocabSize` is the size wanted of a tokenizer that is still to be learned. */
  readonly model: ModelConfig;
  /** Which tensors have which format: recipe/recipes.ts. */
  readonly recipe: PrecisionRecipe;
  readonly data: DataSettings;
  readonly batch: BatchRamp;
  /** At most one field is not null; a run without any is refused. */
  readonly budget: {
    readonly steps: number | null;
    readonly tokens: number | null;
    readonly minutes: number | null;
  };
  readonly learningRate: LearningRateSettings;
  readonly optimizer: AdamWSettings & {
    readonly name: (typeof OPTIMIZERS)[number];
    /** `muon`: momentum of the orthogonalised matrices. */
    readonly momentum: number;
    /** Limit of the global gradient norm; 0 for none. */
    readonly clipNorm: number;
  };
  readonly loss: {
    /** λ of the MTP loss. */
    readonly mtpWeight: SwitchedValue;
    /** α of the sequence-wise balance loss. */
    readonly balanceWeight: number;
    readonly zLoss: number;
  };
  /** γ: how far a routing bias moves a step. */
  readonly biasSpeed: SwitchedValue;
  readonly average: {
    /** Decay of the moving average of the parameters; 0 keeps none. */
    readonly decay: number;
  };
  readonly evaluation: {
    /**
     * Steps between validations on a part of the held-out text; 0 for none. The end validates on
     * all of it.
     */
    readonly everySteps: number;
    /** Sequences of such a part. */
    readonly sequencesMax: number;
  };
  readonly checkpoint: {
    /** Steps between checkpoints; 0 for none by steps. */
    readonly everySteps: number;
    /** Minutes between checkpoints; 0 for none by time. */
    readonly everyMinutes: number;
    /** How many stay. */
    readonly keep: number;
    /** Precision of the published weights; the training state is always exact. */
    readonly dtype: CheckpointDtype;
  };
  readonly samples: {
    /** Steps between samples; 0 for none. */
    readonly everySteps: number;
    readonly prompts: readonly string[];
    readonly tokensMax: number;
  };
  readonly health: {
    /** A loss this many standard deviations above its recent mean is reported; 0 for never. */
    readonly spikeDeviations: number;
  };
}

export interface DataSettings {
  readonly paths: readonly string[];
  /** Share of the bytes held out for validation. */
  readonly heldOutFraction: number;
  readonly sequenceLength: number;
  /** Share of documents trained on as fill in the middle. */
  readonly fimRate: number;
  /**
   * Longer pieces of such documents are cut, so that a gap and its surroundings meet in one
   * sequence.
   */
  readonly fimTokensMax: number;
  /** Longer documents are shuffled in parts. */
  readonly spanTokensMax: number;
  /** Text that a tokenizer is learned from. */
  readonly tokenizerBytesMax: number;
}

const ROPE_SCALING: Schema<RopeScaling> = {
  type: choice(["yarn"]),
  factor: real(1),
  betaFast: real(0),
  betaSlow: real(0),
  mscale: real(0),
  mscaleAllDim: real(0),
  originalMaxPositionEmbeddings: integer(1),
};

/** Types only; `validateConfig` knows what fits together. */
const MODEL: Schema<ModelConfig> = {
  vocabSize: integer(1),
  hiddenDim: integer(1),
  numLayers: integer(1),
  numHeads: integer(1),
  qLoraRank: orNull(integer(1)),
  kvLoraRank: integer(1),
  qkNopeHeadDim: integer(1),
  qkRopeHeadDim: integer(1),
  vHeadDim: integer(1),
  intermediateDim: integer(1),
  moeIntermediateDim: integer(1),
  numRoutedExperts: integer(0),
  numSharedExperts: integer(0),
  numExpertsPerToken: integer(1),
  numExpertGroups: integer(1),
  numChosenGroups: integer(1),
  scoring: choice(SCORINGS),
  topkMethod: choice(TOPK_METHODS),
  normTopkProb: yesOrNo,
  routedScalingFactor: real(0),
  firstDenseLayers: integer(0),
  moeLayerFreq: integer(1),
  rmsNormEps: real(0),
  ropeTheta: real(1),
  ropeScaling: orNull(whole(ROPE_SCALING)),
  maxPositionEmbeddings: integer(1),
  numMtpModules: integer(0),
  tieWordEmbeddings: yesOrNo,
  initializerRange: real(0),
  bosTokenId: orNull(integer(0)),
  eosTokenId: orNull(integer(0)),
  padTokenId: orNull(integer(0)),
};

const SWITCHED: Schema<SwitchedValue> = { first: real(0), last: real(0), switchAt: real(0, 1) };

const SCHEMA: Schema<TrainingSettings> = {
  seed: integer(0),
  model: MODEL,
  recipe: RECIPE_SCHEMA,
  data: {
    paths: texts,
    heldOutFraction: real(0, 0.5),
    sequenceLength: integer(1, 2 ** 20),
    fimRate: real(0, 1),
    fimTokensMax: integer(8),
    spanTokensMax: integer(8),
    tokenizerBytesMax: integer(1),
  },
  batch: {
    sequences: integer(1, 2 ** 20),
    rampFrom: integer(1, 2 ** 20),
    rampTokens: integer(0),
    microBatch: integer(1, 2 ** 16),
    multiple: integer(1, 2 ** 16),
  },
  budget: {
    steps: orNull(integer(1, 1e9)),
    tokens: orNull(integer(1)),
    minutes: orNull(real(1e-3)),
  },
  learningRate: {
    shape: choice(LEARNING_RATE_SHAPES),
    peak: real(0),
    warmupSteps: integer(0),
    finalFraction: real(0, 1),
    decayFraction: real(0, 1),
    decayCurve: choice(DECAY_CURVES),
    cosineFrom: real(0, 1),
    cosineUntil: real(0, 1),
    lastTailFrom: real(0, 1),
    lastTailFraction: real(0, 1),
  },
  optimizer: {
    name: choice(OPTIMIZERS),
    beta1: real(0, 0.999999),
    beta2: real(0, 0.999999),
    epsilon: real(1e-16, 1),
    weightDecay: real(0, 10),
    momentum: real(0, 0.9999),
    clipNorm: real(0),
  },
  loss: { mtpWeight: SWITCHED, balanceWeight: real(0), zLoss: real(0) },
  biasSpeed: SWITCHED,
  average: { decay: real(0, 0.999999) },
  evaluation: { everySteps: integer(0), sequencesMax: integer(1) },
  checkpoint: {
    everySteps: integer(0),
    everyMinutes: real(0),
    keep: integer(1, 1e6),
    dtype: choice(CHECKPOINT_DTYPES),
  },
  samples: { everySteps: integer(0), prompts: texts, tokensMax: integer(1, 1e6) },
  health: { spikeDeviations: real(0) },
};

export interface SettingsSources {
  /** Where the settings start from. */
  readonly preset: Preset;
  /** An object as in a run folder's config.json, and where it comes from. */
  readonly changes?: { readonly value: unknown; readonly origin: string };
  /** Takes the place of the preset's and the file's. */
  readonly recipe?: PrecisionRecipe;
  /** "key=value", applied last and in order. */
  readonly assignments?: readonly string[];
}

/** The settings of a run, complete and checked. */
export function resolveSettings(sources: SettingsSources): TrainingSettings {
  let settings = RECIPES[sources.preset];
  const { changes, recipe } = sources;
  const change = (value: unknown, origin: string): void => {
    settings = overlay(SCHEMA, settings, expandRecipe(value, origin), origin);
  };
  if (changes !== undefined) change(changes.value, changes.origin);
  if (recipe !== undefined) settings = { ...settings, recipe };
  for (const assignment of sources.assignments ?? []) change(parseAssignment(assignment), "--set");
  return checkSettings(settings);
}

/** Refuse what single fields cannot show. Returns the settings unchanged. */
export function checkSettings(settings: TrainingSettings): TrainingSettings {
  const { batch, learningRate, budget, data, model } = settings;
  validateConfig(model);
  validateRecipe(settings.recipe);
  for (const field of ["sequences", "rampFrom"] as const) {
    refuseIf(
      batch[field] % batch.microBatch !== 0,
      `batch.microBatch (${batch.microBatch}) must divide batch.${field} (${batch[field]})`,
    );
    refuseIf(
      batch[field] % (batch.microBatch * batch.multiple) !== 0,
      `batch.multiple (${batch.multiple}) must divide the micro-batches of batch.${field} ` +
        `(${batch[field] / batch.microBatch})`,
    );
  }
  refuseIf(
    batch.rampFrom > batch.sequences,
    `batch.rampFrom (${batch.rampFrom}) must be at most batch.sequences (${batch.sequences})`,
  );
  refuseIf(
    Object.values(budget).filter((limit) => limit !== null).length > 1,
    "budget: only one of steps, tokens and minutes may be set; set the others to null",
  );
  const { cosineFrom, cosineUntil, lastTailFrom } = learningRate;
  refuseIf(
    !(cosineFrom < cosineUntil && cosineUntil <= lastTailFrom),
    `learningRate: cosineFrom (${cosineFrom}) must be below cosineUntil (${cosineUntil}), ` +
      `and that at most lastTailFrom (${lastTailFrom})`,
  );
  refuseIf(
    data.sequenceLength > model.maxPositionEmbeddings,
    `data.sequenceLength (${data.sequenceLength}) must be at most model.maxPositionEmbeddings ` +
      `(${model.maxPositionEmbeddings})`,
  );
  return settings;
}

/** The budget of checked settings; undefined if none is set. */
export function budgetOf({ budget }: TrainingSettings): Budget | undefined {
  if (budget.steps !== null) return { steps: budget.steps };
  if (budget.tokens !== null) return { tokens: budget.tokens };
  if (budget.minutes !== null) return { minutes: budget.minutes };
  return undefined;
}

function refuseIf(refused: boolean, message: string): void {
  if (refused) throw new OperationalError("config.value", message);
}
