/**
 * @file The `deepseek2.*` metadata of a GGUF file, and the configurations that llama.cpp would
 * refuse or misread.
 *
 * Keys of the tokenizer and `general.*` beyond the architecture are the caller's. Every key here
 * was left out once to see what happens: some are errors, and expert_weights_scale,
 * expert_weights_norm and expert_gating_func silently give wrong logits. An MTP block is stored if
 * llama.cpp can run it (one module, compressed query); it never changes the main logits. Source:
 * llama.cpp's loader, tried key by key.
 */
import { OperationalError } from "../base/errors.ts";
import type { GgufValue } from "../checkpoint/gguf.ts";
import type { ModelConfig, RopeScaling } from "./config.ts";

/**
 * Layer counts (and a vocabulary) by which llama.cpp takes a model for V2-Lite, whose query is not
 * compressed.
 */
const TAKEN_FOR_LITE = [26, 27];
const TAKEN_FOR_LITE_WITH_VOCAB = { numBlocks: 48, vocabSize: 128256 };

/** Whether the MTP module goes into the file. */
export function storesMtp(config: ModelConfig): boolean {
  return config.numMtpModules === 1 && config.qLoraRank !== null;
}

/** Throws an OperationalError if llama.cpp cannot compute what this configuration means. */
export function checkGgufSupport(config: ModelConfig): void {
  const { qLoraRank, vocabSize, numRoutedExperts, ropeScaling } = config;
  const numBlocks = blockCount(config);
  const isMoe = numRoutedExperts > 0;
  const takenForLite =
    TAKEN_FOR_LITE.includes(numBlocks) ||
    (numBlocks === TAKEN_FOR_LITE_WITH_VOCAB.numBlocks &&
      vocabSize === TAKEN_FOR_LITE_WITH_VOCAB.vocabSize);
  const refusals: readonly (readonly [boolean, string])[] = [
    [
      qLoraRank !== null && takenForLite,
      `it takes ${numBlocks} blocks for DeepSeek-V2-Lite and ignores qLoraRank (${qLoraRank})`,
    ],
    [isMoe && config.numSharedExperts === 0, "it needs at least one shared expert"],
    [isMoe && config.moeLayerFreq !== 1, `it has no moeLayerFreq (${config.moeLayerFreq})`],
    [
      isMoe && config.topkMethod === "group_limited_greedy" && config.numExpertGroups > 1,
      "it scores expert groups by their two best, never by the best alone",
    ],
    [
      ropeScaling !== null && !isPlainYarn(ropeScaling),
      "it needs mscale = mscaleAllDim, betas 32 and 1",
    ],
  ];
  for (const [refused, reason] of refusals) {
    if (refused)
      throw new OperationalError("model.export", `llama.cpp cannot run this model: ${reason}`);
  }
}

function isPlainYarn({ mscale, mscaleAllDim, betaFast, betaSlow }: RopeScaling): boolean {
  return mscale === mscaleAllDim && betaFast === 32 && betaSlow === 1;
}

function blockCount(config: ModelConfig): number {
  return config.numLayers + (storesMtp(config) ? config.numMtpModules : 0);
}

/** Architecture metadata, in the order it is written. */
export function ggufMetadata(config: ModelConfig): ReadonlyMap<string, GgufValue> {
  checkGgufSupport(config);
  const entries: [string, GgufValue][] = [
    ["general.architecture", { type: "string", value: "deepseek2" }],
    ...shapeEntries(config),
    ...(config.numRoutedExperts > 0 ? expertEntries(config) : []),
    ...(config.ropeScaling === null ? [] : yarnEntries(config.ropeScaling)),
  ];
  if (storesMtp(config)) entries.push(u32("nextn_predict_layers", config.numMtpModules));
  return new Map(entries);
}

function u32(key: string, value: number): [string, GgufValue] {
  return [`deepseek2.${key}`, { type: "u32", value }];
}

function f32(key: string, value: number): [string, GgufValue] {
  return [`deepseek2.${key}`, { type: "f32", value }];
}

function shapeEntries(config: ModelConfig): [string, GgufValue][] {
  const { kvLoraRank, qkNopeHeadDim, qkRopeHeadDim } = config;
  const isMoe = config.numRoutedExperts > 0;
  return [
    u32("block_count", blockCount(config)),
    u32("context_length", config.maxPositionEmbeddings),
    u32("embedding_length", config.hiddenDim),
    u32("feed_forward_length", config.intermediateDim),
    u32("vocab_size", config.vocabSize),
    u32("attention.head_count", config.numHeads),
    // One: after absorption every head reads the same latent.
    u32("attention.head_count_kv", 1),
    f32("attention.layer_norm_rms_epsilon", config.rmsNormEps),
    u32("attention.q_lora_rank", config.qLoraRank ?? 0),
    u32("attention.kv_lora_rank", kvLoraRank),
    u32("attention.key_length", kvLoraRank + qkRopeHeadDim),
    u32("attention.value_length", kvLoraRank),
    u32("attention.key_length_mla", qkNopeHeadDim + qkRopeHeadDim),
    u32("attention.value_length_mla", config.vHeadDim),
    u32("rope.dimension_count", qkRopeHeadDim),
    f32("rope.freq_base", config.ropeTheta),
    u32("leading_dense_block_count", isMoe ? config.firstDenseLayers : blockCount(config)),
    u32("expert_count", config.numRoutedExperts),
    u32("expert_used_count", isMoe ? config.numExpertsPerToken : 0),
    u32("expert_shared_count", Math.max(1, config.numSharedExperts)),
    u32("expert_feed_forward_length", config.moeIntermediateDim),
  ];
}

function expertEntries(config: ModelConfig): [string, GgufValue][] {
  const { numExpertGroups, numChosenGroups, normTopkProb } = config;
  const isGrouped = config.topkMethod === "noaux_tc" && numExpertGroups > 1;
  return [
    f32("expert_weights_scale", config.routedScalingFactor),
    ["deepseek2.expert_weights_norm", { type: "bool", value: normTopkProb }],
    u32("expert_gating_func", config.scoring === "softmax" ? 1 : 2),
    ...(isGrouped
      ? [
          u32("expert_group_count", numExpertGroups),
          u32("expert_group_used_count", numChosenGroups),
        ]
      : []),
  ];
}

function yarnEntries(scaling: RopeScaling): [string, GgufValue][] {
  return [
    ["deepseek2.rope.scaling.type", { type: "string", value: "yarn" }],
    f32("rope.scaling.factor", scaling.factor),
    u32("rope.scaling.original_context_length", scaling.originalMaxPositionEmbeddings),
    f32("rope.scaling.yarn_log_multiplier", 0.1 * scaling.mscaleAllDim),
  ];
}
