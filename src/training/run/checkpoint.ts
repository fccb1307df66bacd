/**
 * @file A checkpoint: a directory in the Hugging Face layout, with the exact training state beside
 * it.
 *
 *     config.json, generation_config.json, tokenizer.json and its companions
 *     model.safetensors (or shards with an index)      stored-form.ts
 *     training-state/                                  run/training-state.ts
 *
 * The directory is written beside its place and renamed, so one under its name is complete.
 * `loadCheckpoint` takes checkpoints of other programs too: it needs config.json, tokenizer.json
 * and the weights (read-weights.ts).
 */
import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { OperationalError, reasonOf } from "../../base/errors.ts";
import { replaceDirectory, writeFileAtomically } from "../../checkpoint/atomic.ts";
import { writeCheckpointTensors } from "../../checkpoint/checkpoint-tensors.ts";
import type { Device } from "../../device/device.ts";
import type { ModelConfig } from "../../model/config.ts";
import type { ExpertShare } from "../../model/expert-share.ts";
import { parseHuggingFaceConfig, toHuggingFaceConfig } from "../../model/hugging-face-config.ts";
import { Model } from "../../model/model.ts";
import type { Precision, TrainableModel } from "../../model/model-types.ts";
import type { PrecisionRecipe } from "../../model/precision-recipe.ts";
import { storedWeightFormat } from "../../model/quantization-config.ts";
import { ServedExperts } from "../../model/served-experts.ts";
import { parseWeightFormat, type WeightFormat } from "../../model/weight-format.ts";
import { Tokenizer } from "../../tokenizer/tokenizer.ts";
import { writeTokenizerFiles } from "../../tokenizer/tokenizer-json.ts";
import { readTokenizerJson } from "../../tokenizer/tokenizer-json-read.ts";
import { readWeights } from "./read-weights.ts";
import { type StoredForm, storedFields, storedSources } from "./stored-form.ts";
import type { Training } from "./training.ts";
import { hasTrainingState, readAverage, writeTrainingState } from "./training-state.ts";

export interface CheckpointContent {
  readonly model: TrainableModel;
  readonly tokenizer: Tokenizer;
  readonly dtype: StoredForm;
}

/** Write a checkpoint that training can resume from. */
export function writeCheckpoint(
  path: string,
  content: CheckpointContent,
  run: { readonly training: Training; readonly seconds: number },
): void {
  replaceDirectory(path, (directory) => {
    writeModelFiles(directory, content);
    writeTrainingState(directory, run.training, run);
  });
}

/** Write the Hugging Face part alone: what is published. */
export function writeModel(path: string, content: CheckpointContent): void {
  replaceDirectory(path, (directory) => writeModelFiles(directory, content));
}

function writeModelFiles(directory: string, { model, tokenizer, dtype }: CheckpointContent): void {
  const { config } = model;
  const write = (name: string, content: string): void =>
    writeFileAtomically(join(directory, name), content);
  const writeJson = (name: string, content: unknown): void =>
    write(name, `${JSON.stringify(content, null, 2)}\n`);
  writeJson("config.json", { ...toHuggingFaceConfig(config), ...storedFields(config, dtype) });
  writeJson("generation_config.json", {
    bos_token_id: config.bosTokenId,
    eos_token_id: config.eosTokenId,
    pad_token_id: config.padTokenId,
    do_sample: false,
  });
  const files = writeTokenizerFiles(tokenizer, { contextTokensMax: config.maxPositionEmbeddings });
  for (const [name, text] of Object.entries(files)) write(name, text);
  writeCheckpointTensors(directory, storedSources(config, model, dtype));
}

export interface LoadOptions {
  /** Take the moving average of the parameters, which only a checkpoint with training state has. */
  readonly average?: boolean;
  /** The recipe that products follow; bf16 if left out. */
  readonly precision?: Precision | PrecisionRecipe;
  /** What is kept of the weights, to infer alone; f32 master values if left out. */
  readonly weights?: WeightFormat;
  /** The ranks that share the routed experts; all experts are here if left out. */
  readonly experts?: ExpertShare | undefined;
}

export interface LoadedModel {
  readonly model: Model;
  readonly tokenizer: Tokenizer;
  /** The checkpoint's directory. */
  readonly path: string;
}

/** A model without gradients and its tokenizer, from a checkpoint directory. */
export function loadCheckpoint(
  device: Device,
  path: string,
  options: LoadOptions = {},
): LoadedModel {
  const config = readModelConfig(path);
  const tokenizer = readTokenizer(path);
  const { precision = "bf16", weights, experts } = options;
  const kept = { precision, seed: null, gradients: false, weights } as const;
  const model = new Model(device, config, { ...kept, experts });
  if (options.average === true) {
    if (!hasTrainingState(path)) {
      throw new OperationalError(
        "checkpoint.average",
        `${path} has no training state, so no average of its parameters; use its weights`,
        { path },
      );
    }
    readAverage(path, model);
  } else {
    readWeights(path, model, readStoredFormat(path));
  }
  return { model, tokenizer, path };
}

/** The experts of a checkpoint that one of the ranks holds that share them. */
export function loadServedExperts(
  device: Device,
  path: string,
  share: ExpertShare,
  { precision = "bf16", weights }: Pick<LoadOptions, "precision" | "weights"> = {},
): ServedExperts {
  const options = { precision, weights };
  const experts = new ServedExperts(device, readModelConfig(path), share, options);
  readWeights(path, experts, readStoredFormat(path));
  return experts;
}

/** The configuration of a checkpoint. */
export function readModelConfig(path: string): ModelConfig {
  return parseHuggingFaceConfig(readJson(path, "config.json"));
}

/** What the weights of a checkpoint are stored in; "bf16" stands for every plain float. */
export function readStoredFormat(path: string): WeightFormat {
  return storedWeightFormat(readJson(path, "config.json"));
}

/**
 * How to load a checkpoint to infer alone: by a notation (weight-format.ts), or as it is stored if
 * none is given.
 */
export function inferenceOptions(path: string, notation: string | undefined): LoadOptions {
  const weights = notation === undefined ? readStoredFormat(path) : parseWeightFormat(notation);
  return weights === "f32" ? { precision: "f32" } : { weights };
}

/** The tokenizer of a checkpoint. */
export function readTokenizer(path: string): Tokenizer {
  const json = readText(path, "tokenizer.json");
  const hasConfig = existsSync(join(path, "tokenizer_config.json"));
  const config = hasConfig ? readText(path, "tokenizer_config.json") : undefined;
  try {
    return new Tokenizer(readTokenizerJson(json, config));
  } catch (error) {
    if (!(error instanceof OperationalError)) throw error;
    throw new OperationalError(error.code, `${path}: ${error.message}`, { path }, error);
  }
}

function readText(path: string, name: string): string {
  try {
    return readFileSync(join(path, name), "utf8");
  } catch (error) {
    throw new OperationalError(
      "checkpoint.missing",
      `${join(path, name)} cannot be read (${reasonOf(error)}); a checkpoint is a folder with ` +
        "config.json, tokenizer.json and safetensors",
      { path },
      error,
    );
  }
}

function readJson(path: string, name: string): unknown {
  const text = readText(path, name);
  try {
    return JSON.parse(text);
  } catch (error) {
    throw new OperationalError(
      "checkpoint.json",
      `${join(path, name)} is not JSON: ${reasonOf(error)}`,
      {
        path,
      },
    );
  }
}
