/**
 * @file Ready-made configurations: tiny, small and base, for a vocabulary of any size.
 *
 *   tiny   what `npm start` trains for two minutes on two cores: 5.2 million parameters at a
 *          vocabulary of 4096, 3.0 million active. Two minutes at 100 to 200
 *          GFLOP/s buy 1 to 2.5·10¹³ operations; at 24 million a token that is half a million to a
 *          million tokens. Every part of the architecture is in it.
 *   small  18.0 million parameters at a vocabulary of 4096: the model that the comparison with
 *          PyTorch trains.
 *   base   127 million parameters at a vocabulary of 16384, 45 million active, for an hour or a
 *          night.
 *
 * All widths are multiples of 16, so that rows of floats fill cache lines. The initial standard
 * deviation is the wider 0.02 of the comparison, not V3's 0.006: at these widths the smaller one
 * starts nearly linear and learns later.
 */
import { type ModelConfig, validateConfig } from "./config.ts";

export const PRESETS = ["tiny", "small", "base"] as const;
export type Preset = (typeof PRESETS)[number];

type Sizes = Pick<
  ModelConfig,
  | "hiddenDim"
  | "numLayers"
  | "numHeads"
  | "qLoraRank"
  | "kvLoraRank"
  | "qkNopeHeadDim"
  | "qkRopeHeadDim"
  | "vHeadDim"
  | "intermediateDim"
  | "moeIntermediateDim"
  | "numRoutedExperts"
  | "numExpertsPerToken"
  | "maxPositionEmbeddings"
>;

const SIZES: Readonly<Record<Preset, Sizes>> = {
  tiny: {
    hiddenDim: 192,
    numLayers: 4,
    numHeads: 6,
    qLoraRank: 96,
    kvLoraRank: 64,
    qkNopeHeadDim: 32,
    qkRopeHeadDim: 16,
    vHeadDim: 32,
    intermediateDim: 512,
    moeIntermediateDim: 128,
    numRoutedExperts: 8,
    numExpertsPerToken: 2,
    maxPositionEmbeddings: 1024,
  },
  small: {
    hiddenDim: 256,
    numLayers: 8,
    numHeads: 8,
    qLoraRank: 128,
    kvLoraRank: 64,
    qkNopeHeadDim: 32,
    qkRopeHeadDim: 16,
    vHeadDim: 32,
    intermediateDim: 768,
    moeIntermediateDim: 128,
    numRoutedExperts: 16,
    numExpertsPerToken: 4,
    maxPositionEmbeddings: 2048,
  },
  base: {
    hiddenDim: 512,
    numLayers: 10,
    numHeads: 8,
    qLoraRank: 256,
    kvLoraRank: 128,
    qkNopeHeadDim: 64,
    qkRopeHeadDim: 32,
    vHeadDim: 64,
    intermediateDim: 1536,
    moeIntermediateDim: 256,
    numRoutedExperts: 24,
    numExpertsPerToken: 4,
    maxPositionEmbeddings: 4096,
  },
};

/** The configuration of a preset. Special tokens are the tokenizer's to say; none are set. */
export function presetConfig(preset: Preset, vocabSize: number): ModelConfig {
  return validateConfig({
    ...SIZES[preset],
    vocabSize,
    numSharedExperts: 1,
    numExpertGroups: 1,
    numChosenGroups: 1,
    scoring: "sigmoid",
    topkMethod: "noaux_tc",
    normTopkProb: true,
    routedScalingFactor: 2.5,
    firstDenseLayers: 1,
    moeLayerFreq: 1,
    rmsNormEps: 1e-6,
    ropeTheta: 10000,
    ropeScaling: null,
    numMtpModules: 1,
    tieWordEmbeddings: false,
    initializerRange: 0.02,
    bosTokenId: null,
    eosTokenId: null,
    padTokenId: null,
  });
}
