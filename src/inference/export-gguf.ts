/**
 * @file A model with its tokenizer as one GGUF file of llama.cpp's `deepseek2` architecture.
 *
 * Tensors and architecture keys are model/gguf-map.ts and model/gguf-metadata.ts; this adds the
 * tokenizer and writes. Values are made one tensor at a time. F32 loses nothing; BF16 rounds the
 * matrices, norms, gates and routing biases stay F32. Refuses a tokenizer with more tokens than the
 * model and what llama.cpp could not compute. Source of the tokenizer's keys and codes:
 * docs/gguf.md of the ggml project, llama.cpp's loader.
 */
import { OperationalError } from "../base/errors.ts";
import { encodeFloats } from "../checkpoint/float-codec.ts";
import { type GgufValue, writeGguf } from "../checkpoint/gguf.ts";
import type { ModelConfig } from "../model/config.ts";
import { ggufTensors, ggufValues } from "../model/gguf-map.ts";
import { ggufMetadata } from "../model/gguf-metadata.ts";
import type { ModelState } from "../model/tensor-source.ts";
import type { Tokenizer } from "../tokenizer/tokenizer.ts";

export const GGUF_DTYPES = ["f32", "bf16"] as const;
export type GgufDtype = (typeof GGUF_DTYPES)[number];

const FILE_TYPES: Readonly<Record<GgufDtype, number>> = { f32: 0, bf16: 32 };
/**
 * What llama.cpp is told of a token: text, a marker that is never text, a marker that is, or no
 * token at all.
 */
const TOKEN_TYPES = { normal: 1, control: 3, userDefined: 4, unused: 5 } as const;
/** How llama.cpp calls the three splits of DeepSeek-V3's pre-tokenizer. */
const PRE_TOKENIZER = "deepseek-v3";

/** Write the file; it appears under its name when it is complete. */
export function exportGguf(
  {
    model,
    tokenizer,
  }: {
    readonly model: ModelState & { readonly config: ModelConfig };
    readonly tokenizer: Tokenizer;
  },
  path: string,
  dtype: GgufDtype,
): void {
  const { config } = model;
  const metadata = new Map<string, GgufValue>([
    ...ggufMetadata(config),
    ["general.file_type", { type: "u32", value: FILE_TYPES[dtype] }],
    ...tokenizerEntries(tokenizer, config.vocabSize),
  ]);
  const sources = ggufTensors(config).map((tensor) => {
    const stored = tensor.isFloat32 || dtype === "f32" ? ("F32" as const) : ("BF16" as const);
    const { name, shape } = tensor;
    const data = (): Uint8Array => encodeFloats(stored, ggufValues(model, tensor));
    return { name, shape, dtype: stored, data };
  });
  writeGguf(path, metadata, sources);
}

/** The tokenizer's keys; ids beyond its own, up to the model's vocabulary, are named as unused. */
function tokenizerEntries(tokenizer: Tokenizer, vocabSize: number): [string, GgufValue][] {
  if (tokenizer.vocabSize > vocabSize) {
    throw new OperationalError(
      "model.export",
      `the tokenizer has ${tokenizer.vocabSize} tokens, the model only ${vocabSize}; ` +
        "export a model with the tokenizer it was trained with",
    );
  }
  const { vocabulary } = tokenizer;
  const tokens: string[] = [];
  const types: number[] = [];
  for (let id = 0; id < vocabSize; id++) {
    const name = id < tokenizer.vocabSize ? tokenizer.tokenName(id) : "";
    tokens.push(name === "" ? `[PAD${id}]` : name);
    types.push(name === "" ? TOKEN_TYPES.unused : tokenType(tokenizer, id));
  }
  const merges = Array.from(
    vocabulary.left,
    (left, rank) => `${tokenizer.tokenName(left)} ${tokenizer.tokenName(vocabulary.right[rank]!)}`,
  );
  const key = (name: string): string => `tokenizer.ggml.${name}`;
  return [
    [key("model"), { type: "string", value: "gpt2" }],
    [key("pre"), { type: "string", value: PRE_TOKENIZER }],
    [key("tokens"), { type: "array", of: "string", values: tokens }],
    [key("token_type"), { type: "array", of: "i32", values: types }],
    [key("merges"), { type: "array", of: "string", values: merges }],
    [key("bos_token_id"), { type: "u32", value: tokenizer.bosId }],
    [key("eos_token_id"), { type: "u32", value: tokenizer.eosId }],
    [key("padding_token_id"), { type: "u32", value: tokenizer.padId }],
    [key("add_bos_token"), { type: "bool", value: true }],
    [key("add_eos_token"), { type: "bool", value: false }],
  ];
}

function tokenType(tokenizer: Tokenizer, id: number): number {
  const added = tokenizer.addedToken(id);
  if (added === undefined) return TOKEN_TYPES.normal;
  return added.special ? TOKEN_TYPES.control : TOKEN_TYPES.userDefined;
}
