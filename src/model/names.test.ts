/**
 * @file The name maps: every row of every parameter stored once, and values where other programs
 * look for them.
 */
import assert from "node:assert/strict";
import { test } from "node:test";
import { OperationalError } from "../base/errors.ts";
import { Random } from "../base/random.ts";
import { view } from "../tensor/view.ts";
import type { ModelConfig } from "./config.ts";
import { countParameters } from "./counts.ts";
import { type GgufTensor, ggufTensors, ggufValues } from "./gguf-map.ts";
import { ggufMetadata } from "./gguf-metadata.ts";
import { parseHuggingFaceConfig } from "./hugging-face-config.ts";
import { Model } from "./model.ts";
import { checkTensorNames, huggingFaceTensors } from "./names.ts";
import { declareParameters } from "./parameter-declarations.ts";
import { DEEPSEEK_V3 } from "./released-configs.fixture.ts";
import { type TensorPlace, viewAt } from "./tensor-source.ts";
import { fillNormal, openReferenceDevice, TINY } from "./test-support.ts";

const WITH_MTP: ModelConfig = { ...TINY, numMtpModules: 1, numSharedExperts: 2 };
const CONFIGS: Readonly<Record<string, ModelConfig>> = {
  "a model with everything": WITH_MTP,
  "a model with two MTP modules and tied embeddings": {
    ...TINY,
    numMtpModules: 2,
    tieWordEmbeddings: true,
  },
  "a dense model without query compression": {
    ...TINY,
    numRoutedExperts: 0,
    firstDenseLayers: 2,
    qLoraRank: null,
  },
};

/** Assert that the places cover every row of the named parameters exactly once. */
function assertCovered(config: ModelConfig, places: readonly TensorPlace[]): void {
  const rows = new Map(
    declareParameters(config).map(({ name, shape }) => [name, new Uint8Array(shape[0])]),
  );
  for (const place of places) {
    if (place.kind === "gateBias") continue;
    const covered = rows.get(place.parameter)!;
    for (let row = place.rowStart; row < place.rowEnd; row++) covered[row]!++;
  }
  for (const [name, covered] of rows) {
    assert.ok(
      covered.every((times) => times === 1),
      `rows of ${name} are stored ${covered} times`,
    );
  }
}

for (const [name, config] of Object.entries(CONFIGS)) {
  test(`the Hugging Face tensors of ${name} hold every row of every parameter once`, () => {
    const own = huggingFaceTensors(config).filter(({ presence }) => presence === "required");
    assertCovered(
      config,
      own.map(({ place }) => place),
    );
    const names = huggingFaceTensors(config).map((tensor) => tensor.name);
    assert.equal(new Set(names).size, names.length);
  });
}

test("the GGUF tensors of a model with everything hold every row of every parameter once", () => {
  assertCovered(
    WITH_MTP,
    ggufTensors(WITH_MTP).flatMap(({ parts }) => parts),
  );
});

test("DeepSeek-V3's tensors have the released names, shapes and dtypes", () => {
  const config = parseHuggingFaceConfig(DEEPSEEK_V3);
  const tensors = new Map(huggingFaceTensors(config).map((tensor) => [tensor.name, tensor]));
  const shapes: Readonly<Record<string, readonly number[]>> = {
    "model.embed_tokens.weight": [129280, 7168],
    "model.layers.0.self_attn.q_a_proj.weight": [1536, 7168],
    "model.layers.0.self_attn.q_a_layernorm.weight": [1536],
    "model.layers.0.self_attn.q_b_proj.weight": [24576, 1536],
    "model.layers.0.self_attn.kv_a_proj_with_mqa.weight": [576, 7168],
    "model.layers.0.self_attn.kv_a_layernorm.weight": [512],
    "model.layers.0.self_attn.kv_b_proj.weight": [32768, 512],
    "model.layers.0.self_attn.o_proj.weight": [7168, 16384],
    "model.layers.2.mlp.gate_proj.weight": [18432, 7168],
    "model.layers.3.mlp.gate.weight": [256, 7168],
    "model.layers.3.mlp.gate.e_score_correction_bias": [256],
    "model.layers.3.mlp.experts.255.up_proj.weight": [2048, 7168],
    "model.layers.60.mlp.experts.0.down_proj.weight": [7168, 2048],
    "model.layers.60.mlp.shared_experts.gate_proj.weight": [2048, 7168],
    "model.norm.weight": [7168],
    "lm_head.weight": [129280, 7168],
    "model.layers.61.embed_tokens.weight": [129280, 7168],
    "model.layers.61.enorm.weight": [7168],
    "model.layers.61.hnorm.weight": [7168],
    "model.layers.61.eh_proj.weight": [7168, 14336],
    "model.layers.61.shared_head.norm.weight": [7168],
    "model.layers.61.shared_head.head.weight": [129280, 7168],
    "model.layers.61.post_attention_layernorm.weight": [7168],
  };
  for (const [name, shape] of Object.entries(shapes)) {
    assert.deepEqual(tensors.get(name)?.shape, shape, name);
  }
  const quantised = (name: string): boolean => tensors.get(name)!.isQuantisable;
  assert.ok(quantised("model.layers.3.mlp.experts.0.down_proj.weight"));
  assert.ok(!quantised("model.layers.3.mlp.gate.weight"));
  assert.ok(!quantised("model.layers.61.eh_proj.weight"));
  assert.ok(!quantised("lm_head.weight"));
  const stored = [...tensors.values()].reduce(
    (sum, { shape, place }) => (place.kind === "rows" ? sum + shape.reduce((a, b) => a * b) : sum),
    0,
  );
  const { total, embedding, head } = countParameters(config);
  assert.equal(stored, total + embedding + head, "the MTP module stores embedding and head again");
});

test("a checkpoint with missing or unknown tensors is refused by their names", () => {
  const names = huggingFaceTensors(WITH_MTP).map(({ name }) => name);
  checkTensorNames(WITH_MTP, names);
  checkTensorNames(
    WITH_MTP,
    names.filter((name) => !name.endsWith("shared_head.head.weight")),
  );
  const refusal = (list: string[], part: string): void =>
    assert.throws(
      () => checkTensorNames(WITH_MTP, list),
      (error: unknown) => error instanceof OperationalError && error.message.includes(part),
    );
  refusal(names.slice(1), "missing (model.embed_tokens.weight");
  refusal([...names, "model.layers.9.mlp.up_proj.weight"], "unexpected (model.layers.9");
});

async function withRandomModel(
  config: ModelConfig,
  run: (model: Model, gguf: (name: string) => Float32Array) => void,
): Promise<void> {
  await using device = await openReferenceDevice();
  const model = new Model(device, config, { precision: "f32", seed: 3 });
  const random = new Random(3, "biases");
  for (const { bias } of model.gateBiases) fillNormal(bias, random);
  const tensors = new Map<string, GgufTensor>(ggufTensors(config).map((t) => [t.name, t]));
  run(model, (name) => ggufValues(model, tensors.get(name)!));
}

test("an expert's matrices are split out of the stack in both formats", async () => {
  await withRandomModel(WITH_MTP, (model, gguf) => {
    const { hiddenDim, moeIntermediateDim: width } = WITH_MTP;
    const up = huggingFaceTensors(WITH_MTP).find(
      ({ name }) => name === "model.layers.1.mlp.experts.5.up_proj.weight",
    )!;
    const stacked = view(model.parameters.get("layers.1.moe.experts.gateUp").value);
    const first = (5 * 2 * width + width) * hiddenDim;
    const expected = [...stacked.subarray(first, first + width * hiddenDim)];
    assert.deepEqual([...viewAt(model, up.place)], expected);
    const exported = gguf("blk.1.ffn_up_exps.weight");
    const at = 5 * width * hiddenDim;
    assert.deepEqual([...exported.subarray(at, at + width * hiddenDim)], expected);
  });
});

test("GGUF has W_UK transposed per head and W_UV as it is", async () => {
  await withRandomModel(WITH_MTP, (model, gguf) => {
    const { qkNopeHeadDim: nope, vHeadDim, kvLoraRank: latent } = WITH_MTP;
    const weight = view(model.parameters.get("layers.1.attention.keyValueUp").value);
    const [head, row, column] = [1, 2, 3];
    const headRow = head * (nope + vHeadDim);
    const key = gguf("blk.1.attn_k_b.weight");
    assert.equal(
      key[(head * latent + column) * nope + row],
      weight[(headRow + row) * latent + column],
    );
    const value = gguf("blk.1.attn_v_b.weight");
    assert.equal(
      value[(head * vHeadDim + row) * latent + column],
      weight[(headRow + nope + row) * latent + column],
    );
    const absorbed = model.layers.blocks[1]!.attention.absorbedWeights;
    const span = latent * (nope + vHeadDim);
    assert.equal(absorbed.headStride, span);
    assert.equal(
      absorbed.keyUp.byteOffset,
      model.parameters.get("layers.1.attention.keyValueUp").value.byteOffset,
    );
    assert.equal(
      view(absorbed.valueUp)[row * latent + column],
      weight[(nope + row) * latent + column],
    );
  });
});

test("routing biases, norms and gates are F32 in every GGUF file", async () => {
  await withRandomModel(WITH_MTP, (model, gguf) => {
    assert.deepEqual([...gguf("blk.1.exp_probs_b.bias")], [...view(model.gateBiases[0]!.bias)]);
    assert.deepEqual([...gguf("blk.2.exp_probs_b.bias")], [...view(model.gateBiases[1]!.bias)]);
  });
  const always = ggufTensors(WITH_MTP).filter((tensor) => tensor.isFloat32);
  assert.ok(always.some(({ name }) => name === "blk.1.ffn_gate_inp.weight"));
  assert.ok(always.some(({ name }) => name === "blk.2.nextn.enorm.weight"));
  assert.ok(always.every(({ name }) => /norm|gate_inp|exp_probs_b/.test(name)));
});

test("GGUF metadata counts the MTP block and describes the absorbed attention", () => {
  const metadata = ggufMetadata(WITH_MTP);
  const value = (key: string): unknown => {
    const entry = metadata.get(`deepseek2.${key}`);
    return entry !== undefined && "value" in entry ? entry.value : undefined;
  };
  assert.equal(value("block_count"), 3);
  assert.equal(value("nextn_predict_layers"), 1);
  assert.equal(value("attention.head_count_kv"), 1);
  assert.equal(value("attention.key_length"), 5 + 4);
  assert.equal(value("attention.key_length_mla"), 8);
  assert.equal(value("expert_gating_func"), 2);
  assert.equal(value("expert_weights_norm"), true);
  const yarn = ggufMetadata(parseHuggingFaceConfig({ ...DEEPSEEK_V3, num_hidden_layers: 12 }));
  assert.deepEqual(yarn.get("deepseek2.rope.scaling.yarn_log_multiplier"), {
    type: "f32",
    value: 0.1,
  });
});

test("a model that llama.cpp would misread is refused with the reason", () => {
  const refused: readonly (readonly [Partial<ModelConfig>, RegExp])[] = [
    [{ numLayers: 25 }, /V2-Lite/],
    [{ numSharedExperts: 0 }, /shared expert/],
    [{ moeLayerFreq: 2 }, /moeLayerFreq/],
    [{ topkMethod: "group_limited_greedy", numExpertGroups: 2 }, /groups/],
  ];
  for (const [change, reason] of refused) {
    assert.throws(() => ggufMetadata({ ...WITH_MTP, ...change }), reason);
  }
});
