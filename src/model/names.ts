/**
 * @file The tensors of a Hugging Face checkpoint and where each stands in the model.
 *
 * One list serves both ways: a writer streams it, a reader fills it. Names are those of released
 * DeepSeek-V3 files: fused matrices are split (gate_proj, up_proj; every expert by itself), and MTP
 * module k is layer numLayers + k, with copies of the embedding and the head. Copies are written
 * with the same data; on reading they may be left out, and must equal the original where they are
 * there. Source: model.safetensors.index.json of DeepSeek-V3.
 */
import { OperationalError } from "../base/errors.ts";
import { isMoeLayer, type ModelConfig } from "./config.ts";
import { blockName, declareParameters } from "./parameter-declarations.ts";
import type { TensorPlace } from "./tensor-source.ts";

export interface HuggingFaceTensor {
  readonly name: string;
  /** Outermost first; norms and biases have one dimension. */
  readonly shape: readonly number[];
  readonly place: TensorPlace;
  /**
   * required: written, and must be there. copy: written, may be missing. tolerated: not written,
   * may be there (the head of a model with tied embeddings). Copies and tolerated tensors must
   * equal what stands at `place`.
   */
  readonly presence: "required" | "copy" | "tolerated";
  /** Stored as float32 whatever the checkpoint's dtype. */
  readonly isFloat32: boolean;
  /** Stored as FP8 with `_scale_inv` in FP8 checkpoints. */
  readonly isQuantisable: boolean;
}

/** Every tensor of a checkpoint of this configuration, in the order of the layers. */
export function huggingFaceTensors(config: ModelConfig): readonly HuggingFaceTensor[] {
  const lister = new TensorLister(config);
  lister.add("model.embed_tokens.weight", "embedding");
  for (let index = 0; index < config.numLayers; index++) lister.addBlock(index);
  lister.add("model.norm.weight", "norm");
  const head = config.tieWordEmbeddings ? "embedding" : "head";
  lister.add("lm_head.weight", head, config.tieWordEmbeddings ? "tolerated" : "required");
  for (let module = 0; module < config.numMtpModules; module++) {
    const prefix = `model.layers.${config.numLayers + module}`;
    lister.add(`${prefix}.embed_tokens.weight`, "embedding", "copy");
    lister.add(`${prefix}.enorm.weight`, `mtp.${module}.embeddingNorm`);
    lister.add(`${prefix}.hnorm.weight`, `mtp.${module}.hiddenNorm`);
    lister.add(`${prefix}.eh_proj.weight`, `mtp.${module}.projection`);
    lister.addBlock(config.numLayers + module);
    lister.add(`${prefix}.shared_head.norm.weight`, `mtp.${module}.outputNorm`);
    lister.add(`${prefix}.shared_head.head.weight`, head, "copy");
  }
  return lister.tensors;
}

/**
 * Refuse a checkpoint whose names are not those of the configuration: which are missing, which
 * nobody expects.
 */
export function checkTensorNames(config: ModelConfig, names: Iterable<string>): void {
  const expected = huggingFaceTensors(config);
  const present = new Set(names);
  const missing = expected
    .filter(({ name, presence }) => presence === "required" && !present.has(name))
    .map(({ name }) => name);
  for (const { name } of expected) present.delete(name);
  if (missing.length === 0 && present.size === 0) return;
  const lists = [
    ["missing", missing],
    ["unexpected", [...present]],
  ] as const;
  const parts = lists
    .filter(([, list]) => list.length > 0)
    .map(([word, list]) => `${list.length} ${word} (${list.slice(0, 3).join(", ")}, …)`);
  throw new OperationalError(
    "checkpoint.tensors",
    `the checkpoint's tensors are not those of its config.json: ${parts.join("; ")}`,
    { missing, unexpected: [...present] },
  );
}

class TensorLister {
  readonly tensors: HuggingFaceTensor[] = [];
  readonly #config: ModelConfig;
  readonly #shapes: ReadonlyMap<string, readonly [number, number]>;
  readonly #roles: ReadonlyMap<string, string>;

  constructor(config: ModelConfig) {
    const declarations = declareParameters(config);
    this.#config = config;
    this.#shapes = new Map(declarations.map(({ name, shape }) => [name, shape]));
    this.#roles = new Map(declarations.map(({ name, role }) => [name, role]));
  }

  /** A parameter as it is. */
  add(name: string, parameter: string, presence: HuggingFaceTensor["presence"] = "required"): void {
    const [rows] = this.#shapes.get(parameter)!;
    this.#addRows(name, parameter, [0, rows], presence);
  }

  /** Rows of a parameter. */
  #addRows(
    name: string,
    parameter: string,
    [rowStart, rowEnd]: readonly [number, number],
    presence: HuggingFaceTensor["presence"] = "required",
  ): void {
    const [, columns] = this.#shapes.get(parameter)!;
    const role = this.#roles.get(parameter);
    this.tensors.push({
      name,
      shape: role === "norm" ? [columns] : [rowEnd - rowStart, columns],
      place: { kind: "rows", parameter, rowStart, rowEnd },
      presence,
      isFloat32: false,
      isQuantisable: (role === "matrix" && !name.endsWith("eh_proj.weight")) || role === "experts",
    });
  }

  addBlock(layerIndex: number): void {
    const config = this.#config;
    const to = `model.layers.${layerIndex}`;
    const from = blockName(config, layerIndex);
    this.add(`${to}.input_layernorm.weight`, `${from}.attentionNorm`);
    this.#addAttention(`${to}.self_attn`, `${from}.attention`);
    this.add(`${to}.post_attention_layernorm.weight`, `${from}.feedForwardNorm`);
    if (isMoeLayer(config, layerIndex)) this.#addMoe(layerIndex, `${to}.mlp`, `${from}.moe`);
    else this.#addFeedForward(`${to}.mlp`, `${from}.feedForward`, config.intermediateDim);
  }

  #addAttention(to: string, from: string): void {
    if (this.#config.qLoraRank === null) {
      this.add(`${to}.q_proj.weight`, `${from}.query`);
    } else {
      this.add(`${to}.q_a_proj.weight`, `${from}.queryDown`);
      this.add(`${to}.q_a_layernorm.weight`, `${from}.queryNorm`);
      this.add(`${to}.q_b_proj.weight`, `${from}.queryUp`);
    }
    this.add(`${to}.kv_a_proj_with_mqa.weight`, `${from}.keyValueDown`);
    this.add(`${to}.kv_a_layernorm.weight`, `${from}.latentNorm`);
    this.add(`${to}.kv_b_proj.weight`, `${from}.keyValueUp`);
    this.add(`${to}.o_proj.weight`, `${from}.output`);
  }

  #addFeedForward(to: string, from: string, width: number): void {
    this.#addRows(`${to}.gate_proj.weight`, `${from}.gateUp`, [0, width]);
    this.#addRows(`${to}.up_proj.weight`, `${from}.gateUp`, [width, 2 * width]);
    this.add(`${to}.down_proj.weight`, `${from}.down`);
  }

  #addMoe(layerIndex: number, to: string, from: string): void {
    const config = this.#config;
    const { moeIntermediateDim: width, hiddenDim, numRoutedExperts } = config;
    this.add(`${to}.gate.weight`, `${from}.gate`);
    if (config.topkMethod === "noaux_tc") {
      this.tensors.push({
        name: `${to}.gate.e_score_correction_bias`,
        shape: [numRoutedExperts],
        place: { kind: "gateBias", layerIndex },
        presence: "required",
        isFloat32: true,
        isQuantisable: false,
      });
    }
    for (let expert = 0; expert < numRoutedExperts; expert++) {
      const name = (matrix: string): string => `${to}.experts.${expert}.${matrix}.weight`;
      const gate = 2 * expert * width;
      this.#addRows(name("gate_proj"), `${from}.experts.gateUp`, [gate, gate + width]);
      this.#addRows(name("up_proj"), `${from}.experts.gateUp`, [gate + width, gate + 2 * width]);
      const down = expert * hiddenDim;
      this.#addRows(name("down_proj"), `${from}.experts.down`, [down, down + hiddenDim]);
    }
    if (config.numSharedExperts > 0) {
      const shared = config.numSharedExperts * width;
      this.#addFeedForward(`${to}.shared_experts`, `${from}.sharedExperts`, shared);
    }
  }
}
