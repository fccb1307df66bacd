/**
 * @file A model with its tokenizer as one GGUF file of llama.cpp's `deepseek2` architecture.
 *
 * Tensors and architecture keys are model/gguf-map.ts and model/gguf-metadata.ts; this adds the
 * tokenizer and writes. Values are made one tensor at a time. F32 loses nothing; BF16 and F16 round
 * the matrices, norms, gates and routing biases stay F32. q8_0 and q4_0 hold the codes of
 * `int8:g32` and `int4:g32`: linear layers and experts in blocks, the head in Q8_0, the embedding
 * and both halves of W_UKV (and rows that are no whole blocks) in BF16. Refuses a tokenizer with
 * more tokens than the model and what llama.cpp could not compute. Source of the tokenizer's keys
 * and codes: docs/gguf.md of the ggml project, llama.cpp's loader.
 */
import { defined, OperationalError } from "../base/errors.ts";
import { encodeFloats } from "../checkpoint/float-codec.ts";
import { type GgufTensorDtype, type GgufValue, writeGguf } from "../checkpoint/gguf.ts";
import {
  BLOCK_DTYPES,
  BLOCK_VALUES,
  type BlockDtype,
  encodeBlocks,
} from "../checkpoint/gguf-blocks.ts";
import type { ModelConfig } from "../model/config.ts";
import { type GgufTensor, ggufTensors, ggufValues } from "../model/gguf-map.ts";
import { ggufMetadata } from "../model/gguf-metadata.ts";
import { declareParameters } from "../model/parameter-declarations.ts";
import type { ModelState } from "../model/tensor-source.ts";
import { integerRuleOf } from "../model/weight-format.ts";
import type { GroupRule } from "../numerics/integer-groups.ts";
import type { Tokenizer } from "../tokenizer/tokenizer.ts";

export const GGUF_DTYPES = ["f32", "bf16", "f16", "q8_0", "q4_0"] as const;
export type GgufDtype = (typeof GGUF_DTYPES)[number];

const FILE_TYPES: Readonly<Record<GgufDtype, number>> = {
  f32: 0,
  f16: 1,
  bf16: 32,
  q8_0: 7,
  q4_0: 2,
};
/** The integers that the weights of a quantised file are cut into. */
const RULES: Readonly<Partial<Record<GgufDtype, GroupRule>>> = {
  q8_0: { bits: 8, groupSize: 32, asymmetric: false },
  q4_0: { bits: 4, groupSize: 32, asymmetric: false },
};
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
  const typeOf = tensorTypes(config, dtype);
  const sources = ggufTensors(config).map((tensor) => {
    const stored = typeOf(tensor);
    const { name, shape } = tensor;
    const data = (): Uint8Array => {
      const values = ggufValues(model, tensor);
      return isBlocks(stored) ? encodeBlocks(stored, values) : encodeFloats(stored, values);
    };
    return { name, shape, dtype: stored, data };
  });
  writeGguf(path, metadata, sources);
}

function isBlocks(dtype: GgufTensorDtype): dtype is BlockDtype {
  return (BLOCK_DTYPES as readonly string[]).includes(dtype);
}

/** What each tensor is stored as. In blocks are the weights that weight-format.ts codes. */
function tensorTypes(
  config: ModelConfig,
  dtype: GgufDtype,
): (tensor: GgufTensor) => GgufTensorDtype {
  const roles = new Map(declareParameters(config).map(({ name, role }) => [name, role]));
  const rule = RULES[dtype];
  return ({ parts, shape, isFloat32 }) => {
    if (isFloat32 || dtype === "f32") return "F32";
    const [place] = parts;
    if (dtype === "f16") return "F16";
    if (rule === undefined || place?.kind !== "rows") return "BF16";
    const role = defined(roles.get(place.parameter), `the role of ${place.parameter}`);
    const integers = integerRuleOf({ name: place.parameter, role }, rule);
    if (integers === null || defined(shape.at(-1), "columns") % BLOCK_VALUES !== 0) return "BF16";
    return integers.bits === 8 ? "Q8_0" : "Q4_0";
  };
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
