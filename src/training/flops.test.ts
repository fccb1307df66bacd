/** @file The FLOP counts that published DeepSeek-V3 timings agree with. */
import assert from "node:assert/strict";
import { test } from "node:test";
import type { ModelConfig } from "../model/config.ts";
import { flopsPerToken } from "./flops.ts";

const V3: ModelConfig = {
  vocabSize: 129280,
  hiddenDim: 7168,
  numLayers: 61,
  numHeads: 128,
  qLoraRank: 1536,
  kvLoraRank: 512,
  qkNopeHeadDim: 128,
  qkRopeHeadDim: 64,
  vHeadDim: 128,
  intermediateDim: 18432,
  moeIntermediateDim: 2048,
  numRoutedExperts: 256,
  numSharedExperts: 1,
  numExpertsPerToken: 8,
  numExpertGroups: 8,
  numChosenGroups: 4,
  scoring: "sigmoid",
  topkMethod: "noaux_tc",
  normTopkProb: true,
  routedScalingFactor: 2.5,
  firstDenseLayers: 3,
  moeLayerFreq: 1,
  rmsNormEps: 1e-6,
  ropeTheta: 10000,
  ropeScaling: null,
  maxPositionEmbeddings: 163840,
  numMtpModules: 1,
  tieWordEmbeddings: false,
  initializerRange: 0.006,
  bosTokenId: 0,
  eosTokenId: 1,
  padTokenId: 1,
};

const giga = (attention: "causal" | "full", withMtp: boolean): string =>
  (flopsPerToken(V3, 4096, { attention, withMtp }) / 1e9).toFixed(1);

test("DeepSeek-V3 takes 250.4 GFLOP a token, 281.2 with full attention, 260.6 with MTP", () => {
  assert.equal(giga("causal", false), "250.4");
  assert.equal(giga("full", false), "281.2");
  assert.equal(giga("causal", true), "260.6");
});

test("a dense model without query compression is counted by its own matrices", () => {
  const dense = {
    ...V3,
    numRoutedExperts: 0,
    qLoraRank: null,
    hiddenDim: 8,
    vocabSize: 16,
    numLayers: 1,
    numHeads: 2,
    kvLoraRank: 4,
    qkNopeHeadDim: 3,
    qkRopeHeadDim: 2,
    vHeadDim: 5,
    intermediateDim: 10,
  };
  const matrices = 8 * 16 + 8 * 10 + 8 * 6 + 4 * 16 + 10 * 8 + 3 * 8 * 10;
  const pairs = 2 * 7 * 2 * (5 + 5);
  assert.equal(
    flopsPerToken(dense, 7, { attention: "full", withMtp: false }),
    3 * (2 * matrices + pairs),
  );
});
