/**
 * @file A strict reader of tokenizer.json: our own files and DeepSeek-V3's kind, nothing looser.
 *
 * Accepted: byte-level BPE with all 256 bytes in its vocabulary, the report's three splits and
 * ByteLevel, no normalizer, merges as "a b" or ["a", "b"], added tokens without stripping. Refused,
 * with an error that names what was found: other normalizers, pre-tokenizers, decoders and models
 * (their text would be cut otherwise than the model was trained on), merges of unknown tokens, ids
 * that clash or run far beyond the vocabulary, and huge files. The post-processor only says which
 * tokens surround a text; encoding here adds none, so its kind is checked and its content left
 * alone. Begin and end of sentence come from tokenizer_config.json, or are DeepSeek's spellings.
 */
import { OperationalError } from "../base/errors.ts";
import { isIntegerIn } from "../base/integers.ts";
import { bytesOfName } from "./byte-alphabet.ts";
import { PRE_TOKENIZER_PATTERNS } from "./pre-tokenizer.ts";
import { type AddedToken, SPECIAL_TOKENS } from "./special-tokens.ts";
import type { Vocabulary } from "./tokenizer.ts";

type JsonObject = Readonly<Record<string, unknown>>;

const FILE_CHARACTERS_MAX = 2 ** 27;
/** Ids stay below this; merge ranks too, as `PieceMerger` needs. */
const VOCAB_SIZE_MAX = 2 ** 20;
const NAME_LENGTH_MAX = 2 ** 12;
/** How many ids may stand unused, for each that is used. */
const ID_SPREAD_MAX = 2;

/** The vocabulary of a tokenizer.json and, where there is one, its tokenizer_config.json. */
export function readTokenizerJson(tokenizerJson: string, tokenizerConfig = "{}"): Vocabulary {
  const root = parseObject(tokenizerJson, "tokenizer.json");
  const config = parseObject(tokenizerConfig, "tokenizer_config.json");
  checkNormalizer(root["normalizer"]);
  checkPreTokenizer(root["pre_tokenizer"]);
  checkPostProcessor(root["post_processor"]);
  checkDecoder(root["decoder"]);
  const model = asObject(root["model"], "model");
  checkModel(model);
  const addedTokens = asArray(root["added_tokens"] ?? [], "added_tokens").map(readAddedToken);
  const ids = readIds(asObject(model["vocab"], "model.vocab"), addedTokens);
  const tokenBytes = readTokenBytes(ids, addedTokens);
  const merges = readMerges(asArray(model["merges"], "model.merges"), ids, tokenBytes);
  const idOf = (key: string, otherwise: string): number =>
    readRole(config[key], otherwise, key, addedTokens);
  const eosId = idOf("eos_token", SPECIAL_TOKENS.eos);
  return {
    tokenBytes,
    ...merges,
    addedTokens,
    bosId: idOf("bos_token", SPECIAL_TOKENS.bos),
    eosId,
    padId: config["pad_token"] == null ? eosId : idOf("pad_token", ""),
    ignoreMerges: model["ignore_merges"] === true,
  };
}

function refuse(subject: string, found: unknown, allowed: string): never {
  const text = found === undefined ? "missing" : (JSON.stringify(found) ?? String(found));
  const shown = text.length > 120 ? `${text.slice(0, 120)}…` : text;
  throw new OperationalError("tokenizer.unsupported", `${subject} is ${shown}; ${allowed}`);
}

function parseObject(text: string, file: string): JsonObject {
  if (text.length > FILE_CHARACTERS_MAX) {
    refuse(`the length of ${file}`, text.length, `at most ${FILE_CHARACTERS_MAX} is read`);
  }
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch (error) {
    throw new OperationalError("tokenizer.json", `${file} is not JSON: ${error}`, {}, error);
  }
  return asObject(value, file);
}

function asObject(value: unknown, subject: string): JsonObject {
  if (typeof value !== "object" || value === null || Array.isArray(value)) {
    refuse(subject, value, "it must be an object");
  }
  return value as JsonObject;
}

function asArray(value: unknown, subject: string): readonly unknown[] {
  if (!Array.isArray(value)) refuse(subject, value, "it must be an array");
  if (value.length > VOCAB_SIZE_MAX) {
    refuse(`the length of ${subject}`, value.length, `at most ${VOCAB_SIZE_MAX} is read`);
  }
  return value;
}

function checkNormalizer(normalizer: unknown): void {
  if (normalizer == null) return;
  const { type, normalizers } = asObject(normalizer, "normalizer");
  const isEmptySequence =
    type === "Sequence" && Array.isArray(normalizers) && normalizers.length === 0;
  if (!isEmptySequence)
    refuse("normalizer", normalizer, "only none (or an empty Sequence) is read");
}

function checkPreTokenizer(value: unknown): void {
  const { type, pretokenizers } = asObject(value, "pre_tokenizer");
  if (type !== "Sequence") refuse("pre_tokenizer.type", type, 'only "Sequence" is read');
  const steps = asArray(pretokenizers, "pre_tokenizer.pretokenizers");
  const numSplits = PRE_TOKENIZER_PATTERNS.length;
  for (let i = 0; i <= numSplits; i++) {
    const subject = `pre_tokenizer.pretokenizers[${i}]`;
    const step = asObject(steps[i], subject);
    if (i < numSplits) checkSplit(step, PRE_TOKENIZER_PATTERNS[i]!, subject);
    else checkByteLevel(step, subject);
  }
  if (steps.length > numSplits + 1) {
    const subject = `pre_tokenizer.pretokenizers[${numSplits + 1}]`;
    refuse(subject, steps[numSplits + 1], "nothing may follow the ByteLevel step");
  }
}

function checkSplit(step: JsonObject, pattern: string, subject: string): void {
  if (step["type"] !== "Split") refuse(`${subject}.type`, step["type"], 'it must be "Split"');
  const regex = asObject(step["pattern"], `${subject}.pattern`)["Regex"];
  if (regex !== pattern) {
    refuse(`${subject}.pattern.Regex`, regex, `only DeepSeek-V3's splits are read: ${pattern}`);
  }
  const behavior = step["behavior"];
  if (behavior !== "Isolated") {
    refuse(`${subject}.behavior`, behavior, 'it must be "Isolated"');
  }
  if (step["invert"] === true) refuse(`${subject}.invert`, true, "it must be false");
}

function checkByteLevel(step: JsonObject, subject: string): void {
  if (step["type"] !== "ByteLevel") {
    refuse(`${subject}.type`, step["type"], 'it must be "ByteLevel"');
  }
  // Both are true where the file does not say.
  for (const key of ["add_prefix_space", "use_regex"]) {
    if (step[key] !== false) refuse(`${subject}.${key}`, step[key], "it must be false");
  }
}

function checkPostProcessor(value: unknown): void {
  if (value == null) return;
  const { type, processors } = asObject(value, "post_processor");
  if (type === "Sequence") {
    for (const processor of asArray(processors, "post_processor.processors")) {
      const inner = asObject(processor, "post_processor.processors[]")["type"];
      if (inner === "Sequence") refuse("post_processor", value, "a Sequence in one is not read");
      checkPostProcessor(processor);
    }
  } else if (type !== "ByteLevel" && type !== "TemplateProcessing") {
    refuse("post_processor.type", type, "only ByteLevel, TemplateProcessing and Sequence are read");
  }
}

function checkDecoder(value: unknown): void {
  const { type } = asObject(value, "decoder");
  if (type !== "ByteLevel") refuse("decoder.type", type, 'only "ByteLevel" is read');
}

function checkModel(model: JsonObject): void {
  if (model["type"] !== "BPE") refuse("model.type", model["type"], 'only "BPE" is read');
  if (model["byte_fallback"] === true) refuse("model.byte_fallback", true, "it must be false");
  const dropout = model["dropout"];
  if (dropout != null && dropout !== 0) refuse("model.dropout", dropout, "it must be null");
  for (const key of ["continuing_subword_prefix", "end_of_word_suffix"]) {
    const affix = model[key];
    if (affix != null && affix !== "") refuse(`model.${key}`, affix, "it must be null");
  }
}

function readAddedToken(value: unknown, index: number): AddedToken {
  const subject = `added_tokens[${index}]`;
  const token = asObject(value, subject);
  const { id, content, special } = token;
  if (!isIntegerIn(id, 0, VOCAB_SIZE_MAX - 1)) {
    refuse(`${subject}.id`, id, `it must be a whole number below ${VOCAB_SIZE_MAX}`);
  }
  if (typeof content !== "string" || content === "" || content.length > NAME_LENGTH_MAX) {
    refuse(`${subject}.content`, content, `it must have 1 to ${NAME_LENGTH_MAX} characters`);
  }
  for (const key of ["single_word", "lstrip", "rstrip"]) {
    if (token[key] === true) refuse(`${subject}.${key}`, true, "it must be false");
  }
  return { id, content, special: special === true };
}

/** Names to ids, model and added tokens together; each id has one name and each name one id. */
function readIds(vocab: JsonObject, addedTokens: readonly AddedToken[]): Map<string, number> {
  const ids = new Map<string, number>();
  const names = new Map<number, string>();
  const add = (name: string, id: unknown): void => {
    if (!isIntegerIn(id, 0, VOCAB_SIZE_MAX - 1)) {
      const allowed = `it must be a whole number below ${VOCAB_SIZE_MAX}`;
      refuse(`the id of ${JSON.stringify(name)}`, id, allowed);
    }
    const other = names.get(id);
    if (other !== undefined && other !== name) {
      refuse(`id ${id}`, [other, name], "a token's id must be its own");
    }
    const otherId = ids.get(name);
    if (otherId !== undefined && otherId !== id) {
      refuse(
        `the id of ${JSON.stringify(name)}`,
        [otherId, id],
        "vocab and added_tokens must agree",
      );
    }
    ids.set(name, id);
    names.set(id, name);
  };
  for (const [name, id] of Object.entries(vocab)) add(name, id);
  for (const { content, id } of addedTokens) add(content, id);
  return ids;
}

function readTokenBytes(
  ids: ReadonlyMap<string, number>,
  addedTokens: readonly AddedToken[],
): (Uint8Array | undefined)[] {
  let vocabSize = 0;
  for (const id of ids.values()) vocabSize = Math.max(vocabSize, id + 1);
  if (vocabSize > ids.size * ID_SPREAD_MAX) {
    refuse(
      "the highest id",
      vocabSize - 1,
      `a vocabulary of ${ids.size} tokens is expected below it`,
    );
  }
  const added = new Set(addedTokens.map(({ content }) => content));
  const tokenBytes: (Uint8Array | undefined)[] = new Array(vocabSize).fill(undefined);
  const seen = new Set<number>();
  for (const [name, id] of ids) {
    if (added.has(name)) continue;
    const bytes = name.length > NAME_LENGTH_MAX ? undefined : bytesOfName(name);
    if (bytes === undefined || bytes.length === 0) {
      refuse(`token ${id}`, name, "its name must be spelled in the byte-level alphabet");
    }
    tokenBytes[id] = bytes;
    if (bytes.length === 1) seen.add(bytes[0]!);
  }
  for (let byte = 0; byte < 256; byte++) {
    if (!seen.has(byte)) refuse(`the token of byte ${byte}`, undefined, "all 256 bytes are needed");
  }
  return tokenBytes;
}

function readMerges(
  entries: readonly unknown[],
  ids: ReadonlyMap<string, number>,
  tokenBytes: readonly (Uint8Array | undefined)[],
): Pick<Vocabulary, "left" | "right" | "merged"> {
  const [left, right, merged] = [0, 1, 2].map(() => new Int32Array(entries.length));
  const pairs = new Set<number>();
  for (const [rank, entry] of entries.entries()) {
    const subject = `model.merges[${rank}]`;
    const parts = typeof entry === "string" ? entry.split(" ") : entry;
    if (!Array.isArray(parts) || parts.length !== 2 || !parts.every((p) => typeof p === "string")) {
      refuse(subject, entry, 'it must be "a b" or ["a", "b"]');
    }
    const [a, b] = parts as [string, string];
    const found = [a, b, a + b].map((name) => ids.get(name));
    const unknown = found.findIndex((id) => id === undefined || tokenBytes[id] === undefined);
    if (unknown >= 0) {
      refuse(subject, entry, `${[a, b, a + b][unknown]} must be in model.vocab and no added token`);
    }
    const pair = found[0]! * VOCAB_SIZE_MAX + found[1]!;
    if (pairs.has(pair)) refuse(subject, entry, "the same pair has a merge before this one");
    pairs.add(pair);
    left![rank] = found[0]!;
    right![rank] = found[1]!;
    merged![rank] = found[2]!;
  }
  return { left: left!, right: right!, merged: merged! };
}

function readRole(
  value: unknown,
  otherwise: string,
  key: string,
  addedTokens: readonly AddedToken[],
): number {
  const content =
    typeof value === "object" && value !== null ? asObject(value, key)["content"] : value;
  const wanted = content ?? otherwise;
  const added = addedTokens.find((token) => token.content === wanted);
  if (added === undefined) refuse(key, wanted, "it must be one of added_tokens");
  return added.id;
}
