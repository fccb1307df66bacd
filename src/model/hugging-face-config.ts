/**
 * @file config.json of `deepseek_v3` and `deepseek_v2` models, read strictly and written back.
 *
 * Every field is honoured, or accepted because it changes nothing here, or refused by name: an
 * unknown one might change the computation. What DeepSeek-V2 configurations leave out has V2's
 * defaults. The older `type` and the newer `rope_type` and `rope_parameters` are both read.
 * Written is the type whose published classes compute this model: deepseek_v3 scores by sigmoid and
 * chooses by noaux_tc; deepseek_v2 scores by softmax, chooses greedily, within groups or not, does
 * not normalise (Transformers ignores norm_topk_prob there) and has no MTP modules. Other gates,
 * say softmax with noaux_tc, train here but are written as `hadal`, without an architecture: other
 * programs then refuse the model instead of computing a different one.
 * Source: released config.json files of DeepSeek-V2, V2-Lite, V3 and Moonlight.
 */
import { type ModelConfig, validateConfig } from "./config.ts";
import { FieldReader } from "./field-reader.ts";
import { readRope, writeRopeScaling } from "./hugging-face-rope.ts";
import { readQuantization } from "./quantization-config.ts";

export const MODEL_TYPES = ["deepseek_v3", "deepseek_v2", "hadal"] as const;
type ModelType = (typeof MODEL_TYPES)[number];

/** Fields that change nothing here: provenance, and settings of other programs. */
const INFORMATIONAL = [
  "_name_or_path",
  "architectures",
  "auto_map",
  "aux_loss_alpha",
  "dtype",
  "output_router_logits",
  "router_aux_loss_coef",
  "seq_aux",
  "torch_dtype",
  "transformers_version",
  "use_cache",
] as const;

/** Fields of which one value is supported. */
const FIXED: Readonly<Record<string, unknown>> = {
  hidden_act: "silu",
  attention_bias: false,
  attention_dropout: 0,
  mlp_bias: false,
  ep_size: 1,
  pretraining_tp: 1,
  rope_interleave: true,
  is_encoder_decoder: false,
};

/** Read a parsed config.json. */
export function parseHuggingFaceConfig(json: unknown): ModelConfig {
  const fields = new FieldReader("config.json", json);
  const modelType = fields.choice("model_type", MODEL_TYPES);
  const isV3 = modelType !== "deepseek_v2";
  const numRoutedExperts = fields.nullableInteger("n_routed_experts", 0) ?? 0;
  const rope = readRope(fields);
  const config: ModelConfig = {
    vocabSize: fields.integer("vocab_size"),
    hiddenDim: fields.integer("hidden_size"),
    numLayers: fields.integer("num_hidden_layers"),
    numHeads: fields.integer("num_attention_heads"),
    qLoraRank: fields.nullableInteger("q_lora_rank", null),
    kvLoraRank: fields.integer("kv_lora_rank"),
    qkNopeHeadDim: fields.integer("qk_nope_head_dim"),
    qkRopeHeadDim: fields.integer("qk_rope_head_dim"),
    vHeadDim: fields.integer("v_head_dim"),
    intermediateDim: fields.integer("intermediate_size"),
    moeIntermediateDim: fields.integer("moe_intermediate_size", 1),
    numRoutedExperts,
    numSharedExperts: fields.nullableInteger("n_shared_experts", 0) ?? 0,
    numExpertsPerToken: fields.nullableInteger("num_experts_per_tok", 1) ?? 1,
    numExpertGroups: fields.nullableInteger("n_group", 1) ?? 1,
    numChosenGroups: fields.nullableInteger("topk_group", 1) ?? 1,
    scoring: fields.choice("scoring_func", ["sigmoid", "softmax"], isV3 ? "sigmoid" : "softmax"),
    topkMethod: fields.choice(
      "topk_method",
      ["noaux_tc", "greedy", "group_limited_greedy"],
      isV3 ? "noaux_tc" : "greedy",
    ),
    normTopkProb: fields.boolean("norm_topk_prob", isV3),
    routedScalingFactor: fields.number("routed_scaling_factor", isV3 ? 2.5 : 1),
    firstDenseLayers: fields.integer("first_k_dense_replace", 0),
    moeLayerFreq: fields.integer("moe_layer_freq", 1),
    rmsNormEps: fields.number("rms_norm_eps", 1e-6),
    ...rope,
    maxPositionEmbeddings: fields.integer("max_position_embeddings"),
    numMtpModules: fields.integer("num_nextn_predict_layers", 0),
    tieWordEmbeddings: fields.boolean("tie_word_embeddings", false),
    initializerRange: fields.number("initializer_range", 0.02),
    bosTokenId: fields.nullableInteger("bos_token_id", null),
    eosTokenId: fields.nullableInteger("eos_token_id", null),
    padTokenId: fields.nullableInteger("pad_token_id", null),
  };
  requireDerivedFields(fields, config);
  for (const [field, value] of Object.entries(FIXED)) fields.fixed(field, value);
  const quantization = fields.nested("quantization_config");
  if (quantization !== null) readQuantization(quantization);
  fields.skip(INFORMATIONAL);
  fields.refuseRest();
  return validateConfig(config);
}

/** Fields that repeat what others say. */
function requireDerivedFields(fields: FieldReader, config: ModelConfig): void {
  fields.fixed("num_key_value_heads", config.numHeads);
  fields.fixed("head_dim", config.qkRopeHeadDim);
  fields.fixed("qk_head_dim", config.qkNopeHeadDim + config.qkRopeHeadDim);
}

const ARCHITECTURES: Readonly<Record<ModelType, readonly string[]>> = {
  deepseek_v3: ["DeepseekV3ForCausalLM"],
  deepseek_v2: ["DeepseekV2ForCausalLM"],
  hadal: [],
};

/** The model type whose classes compute this model; `hadal` if none do. */
function modelTypeOf(config: ModelConfig): ModelType {
  const { scoring, topkMethod, normTopkProb, numMtpModules } = config;
  if (config.numRoutedExperts === 0) return "deepseek_v3";
  if (scoring === "sigmoid") return topkMethod === "noaux_tc" ? "deepseek_v3" : "hadal";
  const isV2 = topkMethod !== "noaux_tc" && !normTopkProb && numMtpModules === 0;
  return isV2 ? "deepseek_v2" : "hadal";
}

/** A config.json that `parseHuggingFaceConfig` reads back as the same configuration. */
export function toHuggingFaceConfig(config: ModelConfig): Record<string, unknown> {
  const modelType = modelTypeOf(config);
  return {
    architectures: ARCHITECTURES[modelType],
    model_type: modelType,
    attention_bias: false,
    attention_dropout: 0,
    bos_token_id: config.bosTokenId,
    eos_token_id: config.eosTokenId,
    pad_token_id: config.padTokenId,
    first_k_dense_replace: config.firstDenseLayers,
    hidden_act: "silu",
    hidden_size: config.hiddenDim,
    initializer_range: config.initializerRange,
    intermediate_size: config.intermediateDim,
    kv_lora_rank: config.kvLoraRank,
    max_position_embeddings: config.maxPositionEmbeddings,
    moe_intermediate_size: config.moeIntermediateDim,
    moe_layer_freq: config.moeLayerFreq,
    n_group: config.numExpertGroups,
    n_routed_experts: config.numRoutedExperts,
    n_shared_experts: config.numSharedExperts,
    norm_topk_prob: config.normTopkProb,
    num_attention_heads: config.numHeads,
    num_experts_per_tok: config.numExpertsPerToken,
    num_hidden_layers: config.numLayers,
    num_key_value_heads: config.numHeads,
    num_nextn_predict_layers: config.numMtpModules,
    q_lora_rank: config.qLoraRank,
    qk_nope_head_dim: config.qkNopeHeadDim,
    qk_rope_head_dim: config.qkRopeHeadDim,
    rms_norm_eps: config.rmsNormEps,
    rope_scaling: writeRopeScaling(config.ropeScaling),
    rope_theta: config.ropeTheta,
    routed_scaling_factor: config.routedScalingFactor,
    scoring_func: config.scoring,
    tie_word_embeddings: config.tieWordEmbeddings,
    topk_group: config.numChosenGroups,
    topk_method: config.topkMethod,
    torch_dtype: "bfloat16",
    use_cache: true,
    v_head_dim: config.vHeadDim,
    vocab_size: config.vocabSize,
  };
}
