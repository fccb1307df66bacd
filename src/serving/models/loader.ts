/** @file Loading a model to serve it: its engine, its chat format, the memory it needs. */
import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { availableMemory } from "node:process";
import { OperationalError } from "../../base/errors.ts";
import { divExact } from "../../base/integers.ts";
import type { Engine } from "../../inference/engine/api.ts";
import { countPlaced } from "../../model/parameter-layout.ts";
import { storedBytes } from "../../model/stored-parameters.ts";
import { DTYPE_BYTES } from "../../tensor/dtype.ts";
import type { Tokenizer } from "../../tokenizer/tokenizer.ts";
import { inferenceOptions, readModelConfig } from "../../training/run/checkpoint.ts";
import { resolveCheckpoint } from "../../training/run/run-folder.ts";
import type { ChatFormat } from "../chat/conversation.ts";
import { deepseekFormat } from "../chat/deepseek-format.ts";
import { TemplateFormat } from "../chat/template.ts";
import { latentCacheBytes } from "./open-engine.ts";
import type { ModelLoader } from "./registry.ts";

const CONFIG_BYTES_MAX = 32 * 2 ** 20;

export interface LoaderOptions {
  /** Of all weights and latents, that an engine keeps; 1 if left out. */
  readonly copies?: number;
  /** The notation of what weights are kept in; as they are stored if left out. */
  readonly weights?: string | undefined;
  /** Copies of routed experts in each layer beyond one of each; none if left out. */
  readonly numRedundant?: number | undefined;
  /**
   * Processes that share the routed experts, of which this one keeps its part. Their engine is open
   * before a model is asked for. 1 if left out.
   */
  readonly numProcesses?: number | undefined;
}

/** A loader of models whose engines `openEngine` opens. */
export function modelLoader(
  openEngine: (path: string) => Promise<Engine>,
  options: LoaderOptions = {},
): ModelLoader {
  const { copies = 1, numProcesses = 1 } = options;
  return {
    estimateBytes: (path) => copies * estimateBytes(path, options),
    // An engine that is open has what it needs, and has taken it from what is available.
    availableBytes: () => (numProcesses > 1 ? Number.POSITIVE_INFINITY : availableMemory()),
    open: async ({ id, path }) => {
      const engine = await openEngine(path);
      return { id, engine, format: chatFormatOf(path, engine.tokenizer) };
    },
  };
}

/** The parameters and the latent cache; what a step needs besides is small. */
function estimateBytes(path: string, options: LoaderOptions): number {
  const { weights: notation, numRedundant = 0, numProcesses = 1 } = options;
  const checkpoint = resolveCheckpoint(path);
  const config = readModelConfig(checkpoint);
  const { weights } = inferenceOptions(checkpoint, notation);
  const numPlaces = divExact(config.numRoutedExperts + numRedundant, numProcesses);
  const parameters =
    weights === undefined
      ? DTYPE_BYTES.f32 * countPlaced(config, numPlaces)
      : storedBytes(config, weights, numPlaces);
  return parameters + latentCacheBytes(config);
}

/** The checkpoint's template, or the built-in format where it has none. */
export function chatFormatOf(path: string, tokenizer: Tokenizer): ChatFormat {
  const template = readTemplate(resolveCheckpoint(path));
  return template === undefined
    ? deepseekFormat(tokenizer)
    : new TemplateFormat(tokenizer, template);
}

/** `chat_template.jinja`, or the field of tokenizer_config.json, as Hugging Face reads them. */
function readTemplate(folder: string): string | undefined {
  const apart = join(folder, "chat_template.jinja");
  if (existsSync(apart)) return readFileSync(apart, "utf8");
  const path = join(folder, "tokenizer_config.json");
  if (!existsSync(path)) return undefined;
  const text = readFileSync(path, "utf8");
  if (text.length > CONFIG_BYTES_MAX) {
    throw new OperationalError("serving.template", `${path} is too long to be read`);
  }
  const template = (JSON.parse(text) as { readonly chat_template?: unknown } | null)?.chat_template;
  if (typeof template === "string") return template;
  if (!Array.isArray(template)) return undefined;
  const named = template as readonly { readonly name?: unknown; readonly template?: unknown }[];
  const standard = named.find(({ name }) => name === "default")?.template;
  return typeof standard === "string" ? standard : undefined;
}
