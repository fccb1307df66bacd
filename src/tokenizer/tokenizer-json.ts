/**
 * @file A vocabulary as the Hugging Face files: tokenizer.json, tokenizer_config.json,
 * special_tokens_map.json.
 *
 * The layout is that of DeepSeek-V3's tokenizer.json (three splits, ByteLevel, BPE), so the Hugging
 * Face libraries, vLLM and SGLang load it without our code. The template puts the begin of sentence
 * before a text, as DeepSeek's tokenizers do when asked for special tokens. The reader is
 * tokenizer-json-read.ts.
 */
import { PRE_TOKENIZER_PATTERNS } from "./pre-tokenizer.ts";
import type { Tokenizer, Vocabulary } from "./tokenizer.ts";

/** File names and their contents. */
export interface TokenizerFiles {
  readonly "tokenizer.json": string;
  readonly "tokenizer_config.json": string;
  readonly "special_tokens_map.json": string;
}

export interface TokenizerFilesOptions {
  /** The longest sequence the model takes, for `model_max_length`. */
  readonly contextTokensMax: number;
}

export function writeTokenizerFiles(
  tokenizer: Tokenizer,
  options: TokenizerFilesOptions,
): TokenizerFiles {
  const special = {
    bos_token: tokenizer.tokenName(tokenizer.bosId),
    eos_token: tokenizer.tokenName(tokenizer.eosId),
    pad_token: tokenizer.tokenName(tokenizer.padId),
  };
  const config = {
    add_bos_token: true,
    add_eos_token: false,
    ...special,
    clean_up_tokenization_spaces: false,
    model_max_length: options.contextTokensMax,
    tokenizer_class: "PreTrainedTokenizerFast",
  };
  return {
    "tokenizer.json": toText(tokenizerJson(tokenizer)),
    "tokenizer_config.json": toText(config),
    "special_tokens_map.json": toText(special),
  };
}

function toText(value: unknown): string {
  return `${JSON.stringify(value, undefined, 2)}\n`;
}

function tokenizerJson(tokenizer: Tokenizer): unknown {
  return {
    version: "1.0",
    truncation: null,
    padding: null,
    added_tokens: tokenizer.vocabulary.addedTokens.map((added) => ({
      ...added,
      single_word: false,
      lstrip: false,
      rstrip: false,
      normalized: false,
    })),
    normalizer: null,
    pre_tokenizer: preTokenizerJson(),
    post_processor: templateJson(tokenizer),
    decoder: { type: "ByteLevel", add_prefix_space: false, trim_offsets: true, use_regex: false },
    model: modelJson(tokenizer, tokenizer.vocabulary),
  };
}

function preTokenizerJson(): unknown {
  const splits = PRE_TOKENIZER_PATTERNS.map((pattern) => ({
    type: "Split",
    pattern: { Regex: pattern },
    behavior: "Isolated",
    invert: false,
  }));
  const bytes = {
    type: "ByteLevel",
    add_prefix_space: false,
    trim_offsets: true,
    use_regex: false,
  };
  return { type: "Sequence", pretokenizers: [...splits, bytes] };
}

function templateJson(tokenizer: Tokenizer): unknown {
  const name = tokenizer.tokenName(tokenizer.bosId);
  const bos = { SpecialToken: { id: name, type_id: 0 } };
  const sequence = (id: "A" | "B"): unknown => ({ Sequence: { id, type_id: 0 } });
  return {
    type: "TemplateProcessing",
    single: [bos, sequence("A")],
    pair: [bos, sequence("A"), sequence("B")],
    special_tokens: { [name]: { id: name, ids: [tokenizer.bosId], tokens: [name] } },
  };
}

function modelJson(tokenizer: Tokenizer, vocabulary: Vocabulary): unknown {
  const vocab: Record<string, number> = {};
  for (let id = 0; id < tokenizer.vocabSize; id++) {
    const name = tokenizer.tokenName(id);
    if (name !== "") vocab[name] = id;
  }
  const merges = Array.from(vocabulary.left, (left, rank) => [
    tokenizer.tokenName(left),
    tokenizer.tokenName(vocabulary.right[rank]!),
  ]);
  return {
    type: "BPE",
    dropout: null,
    unk_token: null,
    continuing_subword_prefix: null,
    end_of_word_suffix: null,
    fuse_unk: false,
    byte_fallback: false,
    ignore_merges: vocabulary.ignoreMerges,
    vocab,
    merges,
  };
}
