/**
 * @file The shape of a model of the DeepSeek-V3 family: every number that decides which tensors
 * exist and what is computed.
 *
 * One type covers V3, V2 (softmax gate, greedy or group-limited top-k, no query compression) and
 * dense models (no routed experts). `validateConfig` refuses what no layer could compute, and
 * sizes that could not even be listed. Names are the glossary's; hugging-face-config.ts maps them
 * to config.json. Source: DeepSeek-V2 and V3 reports, released configurations.
 */
import { OperationalError } from "../base/errors.ts";
import { divExact, isIntegerIn } from "../base/integers.ts";

export const SCORINGS = ["sigmoid", "softmax"] as const;
export type Scoring = (typeof SCORINGS)[number];

/**
 * noaux_tc: bias for the choice, groups by their two best; group_limited_greedy: groups by their
 * best; greedy: none.
 */
export const TOPK_METHODS = ["noaux_tc", "greedy", "group_limited_greedy"] as const;
export type TopkMethod = (typeof TOPK_METHODS)[number];

/** YaRN: frequencies stretched for a longer context, and a temperature on the attention scores. */
export interface RopeScaling {
  readonly type: "yarn";
  readonly factor: number;
  readonly betaFast: number;
  readonly betaSlow: number;
  readonly mscale: number;
  readonly mscaleAllDim: number;
  readonly originalMaxPositionEmbeddings: number;
}

export interface ModelConfig {
  readonly vocabSize: number;
  readonly hiddenDim: number;
  readonly numLayers: number;
  readonly numHeads: number;
  /** null: the query is not compressed. */
  readonly qLoraRank: number | null;
  readonly kvLoraRank: number;
  readonly qkNopeHeadDim: number;
  readonly qkRopeHeadDim: number;
  readonly vHeadDim: number;
  /** Width of a dense layer's feed-forward. */
  readonly intermediateDim: number;
  /** Width of one expert. */
  readonly moeIntermediateDim: number;
  /** 0: a dense model; the fields of the gate are then not used. */
  readonly numRoutedExperts: number;
  readonly numSharedExperts: number;
  readonly numExpertsPerToken: number;
  readonly numExpertGroups: number;
  readonly numChosenGroups: number;
  readonly scoring: Scoring;
  readonly topkMethod: TopkMethod;
  readonly normTopkProb: boolean;
  readonly routedScalingFactor: number;
  /** Layers below this index are dense. */
  readonly firstDenseLayers: number;
  /** Of the others, those whose index it divides are MoE. */
  readonly moeLayerFreq: number;
  readonly rmsNormEps: number;
  readonly ropeTheta: number;
  readonly ropeScaling: RopeScaling | null;
  readonly maxPositionEmbeddings: number;
  readonly numMtpModules: number;
  readonly tieWordEmbeddings: boolean;
  /** Standard deviation of the initial parameters. */
  readonly initializerRange: number;
  readonly bosTokenId: number | null;
  readonly eosTokenId: number | null;
  readonly padTokenId: number | null;
}

/** Whether layer `layerIndex` is MoE; MTP module k is layer numLayers + k. */
export function isMoeLayer(config: ModelConfig, layerIndex: number): boolean {
  return (
    config.numRoutedExperts > 0 &&
    layerIndex >= config.firstDenseLayers &&
    layerIndex % config.moeLayerFreq === 0
  );
}

/** Layers of the main model and of the MTP modules. */
export function countLayers(config: ModelConfig): number {
  return config.numLayers + config.numMtpModules;
}

/** Indexes of the MoE layers, MTP modules last. */
export function moeLayerIndices(config: ModelConfig): readonly number[] {
  return Array.from({ length: countLayers(config) }, (_, index) => index).filter((index) =>
    isMoeLayer(config, index),
  );
}

interface Bounds {
  readonly least: number;
  readonly most: number;
}

const WIDTH: Bounds = { least: 1, most: 2 ** 20 };
const INTEGER_BOUNDS = {
  vocabSize: { least: 2, most: 2 ** 24 },
  hiddenDim: WIDTH,
  numLayers: { least: 1, most: 4096 },
  numHeads: { least: 1, most: 4096 },
  kvLoraRank: WIDTH,
  qkNopeHeadDim: WIDTH,
  qkRopeHeadDim: { least: 2, most: 2 ** 16 },
  vHeadDim: WIDTH,
  intermediateDim: WIDTH,
  moeIntermediateDim: WIDTH,
  numRoutedExperts: { least: 0, most: 2 ** 16 },
  numSharedExperts: { least: 0, most: 1024 },
  numExpertsPerToken: { least: 1, most: 16 },
  numExpertGroups: { least: 1, most: 2 ** 16 },
  numChosenGroups: { least: 1, most: 2 ** 16 },
  firstDenseLayers: { least: 0, most: 4096 },
  moeLayerFreq: { least: 1, most: 4096 },
  maxPositionEmbeddings: { least: 1, most: 2 ** 24 },
  numMtpModules: { least: 0, most: 16 },
} as const satisfies Partial<Record<keyof ModelConfig, Bounds>>;

/** Experts of all layers, a dense feed-forward being one: 16 times those of V3. */
const EXPERTS_MAX = 2 ** 18;
/** 400 times V3; the bytes of their training state are still exact as numbers. */
const PARAMETERS_MAX = 2 ** 48;

/** Refuse a configuration that names no model. Returns it unchanged. */
export function validateConfig(config: ModelConfig): ModelConfig {
  for (const [field, bounds] of Object.entries(INTEGER_BOUNDS)) {
    requireInteger(field, config[field as keyof typeof INTEGER_BOUNDS], bounds);
  }
  if (config.qLoraRank !== null) requireInteger("qLoraRank", config.qLoraRank, WIDTH);
  requireNumber("rmsNormEps", config.rmsNormEps, 0, 1);
  requireNumber("ropeTheta", config.ropeTheta, 1, 1e12);
  requireNumber("routedScalingFactor", config.routedScalingFactor, 0, 1e6);
  requireNumber("initializerRange", config.initializerRange, 0, 10);
  refuseIf(
    config.qkRopeHeadDim % 2 !== 0,
    `qkRopeHeadDim (${config.qkRopeHeadDim}) must be even: RoPE turns pairs`,
  );
  for (const field of ["bosTokenId", "eosTokenId", "padTokenId"] as const) {
    if (config[field] !== null) {
      requireInteger(field, config[field], { least: 0, most: config.vocabSize - 1 });
    }
  }
  if (config.ropeScaling !== null) validateRopeScaling(config.ropeScaling);
  if (config.numRoutedExperts > 0) validateGate(config);
  validateSize(config);
  return config;
}

/** Fields within their bounds can together still name a model that no memory holds. */
function validateSize(config: ModelConfig): void {
  const { numLayers, numMtpModules, numRoutedExperts } = config;
  const experts = countLayers(config) * (numRoutedExperts + 1);
  refuseIf(
    experts > EXPERTS_MAX,
    `numLayers + numMtpModules (${numLayers} + ${numMtpModules}) times numRoutedExperts + 1 ` +
      `(${numRoutedExperts + 1}) is ${experts}; it must be at most ${EXPERTS_MAX}`,
  );
  const parameters = estimateParameters(config);
  refuseIf(
    parameters > PARAMETERS_MAX,
    `the model would have ${parameters.toExponential(1)} parameters; ` +
      `it must have at most ${PARAMETERS_MAX.toExponential(1)}`,
  );
}

/** Parameters of all matrices, with both kinds of feed-forward in every layer: never too few. */
function estimateParameters(config: ModelConfig): number {
  const { vocabSize, hiddenDim, numHeads, qLoraRank, kvLoraRank, moeIntermediateDim } = config;
  const { qkNopeHeadDim, qkRopeHeadDim, vHeadDim, numRoutedExperts, numSharedExperts } = config;
  const attention =
    hiddenDim * ((qLoraRank ?? 0) + kvLoraRank + qkRopeHeadDim + numHeads * vHeadDim) +
    numHeads * (qkNopeHeadDim + qkRopeHeadDim) * (qLoraRank ?? hiddenDim) +
    numHeads * (qkNopeHeadDim + vHeadDim) * kvLoraRank;
  const expertsWidth = (numRoutedExperts + numSharedExperts) * moeIntermediateDim;
  const feedForward = hiddenDim * (3 * (config.intermediateDim + expertsWidth) + numRoutedExperts);
  const perLayer = attention + feedForward + 2 * hiddenDim * hiddenDim;
  return 2 * vocabSize * hiddenDim + countLayers(config) * perLayer;
}

function validateRopeScaling(scaling: RopeScaling): void {
  requireNumber("ropeScaling.factor", scaling.factor, 1, 1e6);
  requireNumber("ropeScaling.betaFast", scaling.betaFast, 1e-6, 1e6);
  requireNumber("ropeScaling.betaSlow", scaling.betaSlow, 1e-6, 1e6);
  requireNumber("ropeScaling.mscale", scaling.mscale, 0, 1e3);
  requireNumber("ropeScaling.mscaleAllDim", scaling.mscaleAllDim, 0, 1e3);
  const original = scaling.originalMaxPositionEmbeddings;
  requireInteger("ropeScaling.originalMaxPositionEmbeddings", original, {
    least: 1,
    most: 2 ** 24,
  });
}

function validateGate(config: ModelConfig): void {
  const { numRoutedExperts, numExpertGroups, numChosenGroups, numExpertsPerToken } = config;
  refuseIf(
    numRoutedExperts % numExpertGroups !== 0,
    `numExpertGroups (${numExpertGroups}) must divide numRoutedExperts (${numRoutedExperts})`,
  );
  refuseIf(
    numChosenGroups > numExpertGroups,
    `numChosenGroups (${numChosenGroups}) must be at most numExpertGroups (${numExpertGroups})`,
  );
  const reachable =
    config.topkMethod === "greedy"
      ? numRoutedExperts
      : divExact(numRoutedExperts, numExpertGroups) * numChosenGroups;
  refuseIf(
    numExpertsPerToken > reachable,
    `numExpertsPerToken (${numExpertsPerToken}) must be at most ${reachable}, ` +
      "the experts of the chosen groups",
  );
}

function requireInteger(field: string, value: number, { least, most }: Bounds): void {
  refuseIf(
    !isIntegerIn(value, least, most),
    `${field} (${value}) must be a whole number from ${least} to ${most}`,
  );
}

function requireNumber(field: string, value: number, least: number, most: number): void {
  const allowed = Number.isFinite(value) && value >= least && value <= most;
  refuseIf(!allowed, `${field} (${value}) must be a number from ${least} to ${most}`);
}

function refuseIf(refused: boolean, message: string): void {
  if (refused) throw new OperationalError("config.value", message);
}
