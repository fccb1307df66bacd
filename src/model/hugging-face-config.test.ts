/** @file Reading config.json: released configurations, round trips, and what is refused by name. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { OperationalError } from "../base/errors.ts";
import type { ModelConfig } from "./config.ts";
import { countParameters } from "./counts.ts";
import { parseHuggingFaceConfig, toHuggingFaceConfig } from "./hugging-face-config.ts";
import { PRESETS, presetConfig } from "./presets.ts";
import { DEEPSEEK_V2_LITE, DEEPSEEK_V3, MOONLIGHT } from "./released-configs.fixture.ts";
import { TINY } from "./test-support.ts";

test("DeepSeek-V3 has 671.03 billion parameters, 37.55 active, and 11.61 in its MTP module", () => {
  const counts = countParameters(parseHuggingFaceConfig(DEEPSEEK_V3));
  assert.equal((counts.main / 1e9).toFixed(3), "671.026");
  assert.equal((counts.active / 1e9).toFixed(2), "37.55");
  assert.equal((counts.mtp / 1e9).toFixed(2), "11.61");
  assert.equal((counts.embedding / 1e9).toFixed(4), "0.9267");
  assert.equal(counts.attention, 61 * (187_107_328 - 1536 - 512));
});

test("V2-Lite has 15.706 billion parameters and Moonlight 15.96", () => {
  const lite = countParameters(parseHuggingFaceConfig(DEEPSEEK_V2_LITE));
  assert.equal((lite.total / 1e9).toFixed(3), "15.706");
  const moonlight = countParameters(parseHuggingFaceConfig(MOONLIGHT));
  assert.equal((moonlight.total / 1e9).toFixed(2), "15.96");
});

test("the small preset is the comparison's model of 18.0 million parameters", () => {
  assert.equal((countParameters(presetConfig("small", 4096)).total / 1e6).toFixed(1), "18.0");
});

test("what is written is read back as the same configuration", () => {
  const dense: Partial<ModelConfig> = { numRoutedExperts: 0, firstDenseLayers: 2, qLoraRank: null };
  const configs = [
    ...PRESETS.map((preset) => presetConfig(preset, 4096)),
    ...[DEEPSEEK_V3, DEEPSEEK_V2_LITE, MOONLIGHT].map(parseHuggingFaceConfig),
    { ...TINY, ...dense, tieWordEmbeddings: true, numMtpModules: 2 },
  ];
  for (const config of configs) {
    const written: unknown = JSON.parse(JSON.stringify(toHuggingFaceConfig(config)));
    assert.deepEqual(parseHuggingFaceConfig(written), config);
  }
});

const V2_LITE = parseHuggingFaceConfig(DEEPSEEK_V2_LITE);
const WRITTEN_AS: readonly (readonly [string, ModelConfig, string])[] = [
  ["V3", parseHuggingFaceConfig(DEEPSEEK_V3), "deepseek_v3"],
  ["Moonlight", parseHuggingFaceConfig(MOONLIGHT), "deepseek_v3"],
  ["a dense model", { ...TINY, numRoutedExperts: 0 }, "deepseek_v3"],
  ["V2-Lite", V2_LITE, "deepseek_v2"],
  [
    "V2's gate with groups",
    { ...V2_LITE, topkMethod: "group_limited_greedy", numExpertGroups: 8, numChosenGroups: 3 },
    "deepseek_v2",
  ],
  ["softmax with V3's choice", { ...V2_LITE, topkMethod: "noaux_tc" }, "hadal"],
  ["sigmoid with V2's choice", { ...V2_LITE, scoring: "sigmoid" }, "hadal"],
  ["V2's gate, normalised", { ...V2_LITE, normTopkProb: true }, "hadal"],
  ["V2's gate with an MTP module", { ...V2_LITE, numMtpModules: 1 }, "hadal"],
];

for (const [name, config, modelType] of WRITTEN_AS) {
  test(`${name} is written as ${modelType}, and read back as it was`, () => {
    const written = toHuggingFaceConfig(config);
    assert.equal(written["model_type"], modelType);
    const version = modelType === "hadal" ? null : modelType.slice(-1);
    const architectures = version === null ? [] : [`DeepseekV${version}ForCausalLM`];
    assert.deepEqual(written["architectures"], architectures);
    assert.deepEqual(parseHuggingFaceConfig(JSON.parse(JSON.stringify(written))), config);
  });
}

test("the newer spelling of RoPE's fields is read too", () => {
  const { rope_theta: theta, rope_scaling: scaling, ...rest } = DEEPSEEK_V3;
  const { type, ...numbers } = scaling as Record<string, unknown>;
  const newer = { ...rest, rope_parameters: { rope_theta: theta, rope_type: type, ...numbers } };
  assert.deepEqual(parseHuggingFaceConfig(newer), parseHuggingFaceConfig(DEEPSEEK_V3));
  const plain = { ...rest, rope_parameters: { rope_theta: 5000, rope_type: "default" } };
  assert.equal(parseHuggingFaceConfig(plain).ropeScaling, null);
  assert.equal(parseHuggingFaceConfig(plain).ropeTheta, 5000);
});

const REFUSED: readonly (readonly [string, Record<string, unknown>])[] = [
  ["model_type", { model_type: "llama" }],
  ["hidden_size", { hidden_size: undefined }],
  ["hidden_size", { hidden_size: "7168" }],
  ["hiddenDim", { hidden_size: 2 ** 40 }],
  ["hidden_act", { hidden_act: "gelu" }],
  ["attention_bias", { attention_bias: true }],
  ["num_key_value_heads", { num_key_value_heads: 8 }],
  ["rope_interleave", { rope_interleave: false }],
  ["sliding_window", { sliding_window: 4096 }],
  ["type", { rope_scaling: { type: "linear", factor: 2 } }],
  ["attention_factor", { rope_scaling: { type: "yarn", factor: 2, attention_factor: 1 } }],
  ["qkRopeHeadDim", { qk_rope_head_dim: 63 }],
  ["numExpertGroups", { n_group: 7 }],
  ["numChosenGroups", { topk_group: 9 }],
  ["numExpertsPerToken", { n_group: 256, topk_group: 4 }],
  ["topk_method", { topk_method: "expert_choice" }],
  ["scoring_func", { scoring_func: "tanh" }],
  ["bosTokenId", { bos_token_id: 129280 }],
  ["weight_block_size", { quantization_config: { weight_block_size: [1, 128] } }],
  ["quant_method", { quantization_config: { quant_method: "awq", weight_block_size: [128, 128] } }],
  ["rmsNormEps", { rms_norm_eps: -1 }],
  ["numRoutedExperts", { num_hidden_layers: 4096, n_routed_experts: 65536 }],
  ["parameters", { moe_intermediate_size: 2 ** 20 }],
  ["parameters", { hidden_size: 2 ** 20, intermediate_size: 2 ** 20 }],
];

for (const [field, change] of REFUSED) {
  test(`${JSON.stringify(change)} is refused with a message that names ${field}`, () => {
    assert.throws(
      () => parseHuggingFaceConfig({ ...DEEPSEEK_V3, ...change }),
      (error: unknown) =>
        error instanceof OperationalError &&
        error.code.startsWith("config.") &&
        error.message.includes(field),
    );
  });
}

test("what is not a JSON object is refused", () => {
  for (const json of [null, [], "deepseek_v3", 3]) {
    assert.throws(() => parseHuggingFaceConfig(json), OperationalError);
  }
});
