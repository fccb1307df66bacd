/**
 * @file tokenizer.json: what the Hugging Face library makes of ours, and what the reader refuses.
 */
import assert from "node:assert/strict";
import { test } from "node:test";
import { Tokenizer as HuggingFaceTokenizer } from "@huggingface/tokenizers";
import { randomText } from "../../test/support/random-text.ts";
import { OperationalError } from "../base/errors.ts";
import { Random } from "../base/random.ts";
import { trainBpe } from "./bpe-train.ts";
import { learnedVocabulary, Tokenizer } from "./tokenizer.ts";
import { writeTokenizerFiles } from "./tokenizer-json.ts";
import { readTokenizerJson } from "./tokenizer-json-read.ts";

const random = new Random(3, "json");
const texts = Array.from({ length: 400 }, () => randomText(random, 50));
const tokenizer = new Tokenizer(
  learnedVocabulary(trainBpe(texts, { vocabSize: 1500, numAddedTokens: 9 })),
);
const files = writeTokenizerFiles(tokenizer, { contextTokensMax: 4096 });
const config = files["tokenizer_config.json"];

type Json = Record<string, unknown>;

interface TokenizerJson {
  added_tokens: Json[];
  normalizer: unknown;
  pre_tokenizer: { type: string; pretokenizers: Json[] };
  post_processor: unknown;
  decoder: Json;
  model: { vocab: Record<string, number>; merges: unknown[] } & Json;
}

/** The file with something changed. */
function edited(edit: (root: TokenizerJson) => void): string {
  const root = JSON.parse(files["tokenizer.json"]) as TokenizerJson;
  edit(root);
  return JSON.stringify(root);
}

const byId = new HuggingFaceTokenizer(
  JSON.parse(files["tokenizer.json"]) as object,
  JSON.parse(config) as object,
);

test("the Hugging Face library encodes as we do, on random Unicode", () => {
  for (let seed = 0; seed < 1500; seed++) {
    const text = randomText(new Random(seed, "hugging face"), 1 + (seed % 60));
    const theirs = byId.encode(text, { add_special_tokens: false }).ids;
    const ours = tokenizer.encode(text, { allowAddedTokens: true });
    assert.deepEqual([...ours], theirs, `seed ${seed}: ${JSON.stringify(text)}`);
    assert.equal(byId.decode(theirs), text, `seed ${seed}`);
  }
});

test("the Hugging Face library puts <bos> first and skips special tokens as we do", () => {
  const ids = byId.encode("a b").ids;
  assert.deepEqual(ids, [tokenizer.bosId, ...tokenizer.encode("a b")]);
  const think = tokenizer.specialId("thinkEnd")!;
  assert.equal(
    byId.decode([...ids, think, tokenizer.eosId], { skip_special_tokens: true }),
    tokenizer.decode([...ids, think, tokenizer.eosId], { skipSpecialTokens: true }),
  );
});

test("invalid UTF-8 is replaced as the Hugging Face library replaces it", () => {
  for (let seed = 0; seed < 300; seed++) {
    const source = new Random(seed, "bytes");
    const ids = Array.from({ length: 1 + source.below(10) }, () =>
      source.below(tokenizer.vocabSize),
    );
    assert.equal(tokenizer.decode(ids), byId.decode(ids), `seed ${seed}: ${ids}`);
  }
});

test("what was written is read again and writes the same files", () => {
  const read = new Tokenizer(readTokenizerJson(files["tokenizer.json"], config));
  assert.deepEqual(writeTokenizerFiles(read, { contextTokensMax: 4096 }), files);
  for (const text of texts.slice(0, 50)) {
    assert.deepEqual(read.encode(text), tokenizer.encode(text));
  }
});

test("a file of DeepSeek's shape is read: string merges, ByteLevel, an empty normalizer", () => {
  const text = edited((root) => {
    root.normalizer = { type: "Sequence", normalizers: [] };
    root.post_processor = { type: "ByteLevel", add_prefix_space: true, use_regex: true };
    root.decoder = { type: "ByteLevel", add_prefix_space: true, trim_offsets: true };
    root.model.merges = root.model.merges.map((pair) => (pair as string[]).join(" "));
    root.added_tokens.push({ id: 1503, content: "<｜place▁holder▁no▁0｜>", special: false });
  });
  const deepSeekConfig = JSON.stringify({
    bos_token: { content: "<｜begin▁of▁sentence｜>" },
    eos_token: { content: "<｜end▁of▁sentence｜>" },
    pad_token: { content: "<｜User｜>" },
  });
  const read = new Tokenizer(readTokenizerJson(text, deepSeekConfig));
  assert.equal(read.vocabSize, 1504);
  assert.equal(read.padId, 2);
  assert.equal(read.tokenName(1502), "");
  assert.equal(read.decode([1502, 1503]), "<｜place▁holder▁no▁0｜>");
  for (const sample of texts.slice(0, 50)) {
    assert.deepEqual(read.encode(sample), tokenizer.encode(sample));
  }
});

test("with ignore_merges a piece that is a token is that token, as Hugging Face has it", () => {
  const text = edited((root) => {
    root.model["ignore_merges"] = true;
    root.model.vocab["zqzq"] = 1500;
  });
  const read = new Tokenizer(readTokenizerJson(text, config));
  const theirs = new HuggingFaceTokenizer(JSON.parse(text) as object, JSON.parse(config) as object);
  assert.deepEqual([...read.encode("zqzq")], [1500]);
  for (const sample of ["zqzq", "zqzq zqzq zqzqz", ...texts.slice(0, 50)]) {
    const ids = theirs.encode(sample, { add_special_tokens: false }).ids;
    assert.deepEqual([...read.encode(sample, { allowAddedTokens: true })], ids, sample);
  }
});

const REFUSED: readonly (readonly [string, (root: TokenizerJson) => void, RegExp])[] = [
  ["a normalizer", (r) => (r.normalizer = { type: "NFC" }), /normalizer is \{"type":"NFC"\}/],
  [
    "GPT-2's pre-tokenizer",
    (r) => (r.pre_tokenizer.type = "ByteLevel"),
    /pre_tokenizer\.type is "ByteL/,
  ],
  [
    "another split",
    (r) => (r.pre_tokenizer.pretokenizers[1]!["pattern"] = { Regex: "x" }),
    /\[1\].*"x"/,
  ],
  ["an unknown step", (r) => (r.pre_tokenizer.pretokenizers[0]!["type"] = "Digits"), /"Digits"/],
  [
    "a step too many",
    (r) => r.pre_tokenizer.pretokenizers.push({ type: "Punctuation" }),
    /Punctuation/,
  ],
  [
    "another behaviour",
    (r) => (r.pre_tokenizer.pretokenizers[0]!["behavior"] = "Removed"),
    /"Removed"/,
  ],
  [
    "a prefix space",
    (r) => delete r.pre_tokenizer.pretokenizers[3]!["add_prefix_space"],
    /add_prefix_space/,
  ],
  ["another decoder", (r) => (r.decoder["type"] = "Metaspace"), /decoder\.type is "Metaspace"/],
  ["another model", (r) => (r.model["type"] = "Unigram"), /model\.type is "Unigram"/],
  ["byte fallback", (r) => (r.model["byte_fallback"] = true), /byte_fallback/],
  ["dropout", (r) => (r.model["dropout"] = 0.1), /dropout is 0\.1/],
  [
    "another post-processor",
    (r) => (r.post_processor = { type: "BertProcessing" }),
    /BertProcessing/,
  ],
  ["a stripping token", (r) => (r.added_tokens[0]!["lstrip"] = true), /added_tokens\[0\]\.lstrip/],
  [
    "an empty added token",
    (r) => (r.added_tokens[0]!["content"] = ""),
    /added_tokens\[0\]\.content/,
  ],
  ["two tokens of one id", (r) => (r.model.vocab["zqzq"] = 20), /id 20 is/],
  ["two ids of one token", (r) => (r.added_tokens[0]!["id"] = 7777), /7777/],
  ["an id far away", (r) => (r.model.vocab["zqzq"] = 900000), /the highest id is 900000/],
  ["an id that is no number", (r) => (r.model.vocab["zqzq"] = Number.NaN), /"zqzq" is null/],
  ["a name outside the alphabet", (r) => (r.model.vocab["a b"] = 1500), /token 1500 is "a b"/],
  ["a missing byte", (r) => Reflect.deleteProperty(r.model.vocab, "Ā"), /byte 0 is missing/],
  [
    "a merge of an unknown token",
    (r) => r.model.merges.push(["zq", "zq"]),
    /zq must be in model\.vocab/,
  ],
  ["a merge of three", (r) => r.model.merges.push("a b c"), /"a b c"/],
  ["a merge twice", (r) => r.model.merges.push(r.model.merges[0]), /before this one/],
  ["no merges", (r) => Reflect.deleteProperty(r.model, "merges"), /model\.merges is missing/],
];

test("what would be tokenized wrongly is refused by name", () => {
  for (const [name, edit, message] of REFUSED) {
    assert.throws(
      () =>
        readTokenizerJson(
          edited((root) => void edit(root)),
          config,
        ),
      (error) => {
        assert.ok(error instanceof OperationalError, `${name}: ${error}`);
        assert.match(error.message, message, name);
        return true;
      },
      name,
    );
  }
  assert.throws(() => readTokenizerJson("{", config), /tokenizer\.json is not JSON/);
  assert.throws(
    () => readTokenizerJson("[]", config),
    /tokenizer\.json is \[\]; it must be an object/,
  );
  assert.throws(
    () => readTokenizerJson(files["tokenizer.json"], '{"eos_token":"</s>"}'),
    /eos_token is "<\/s>"; it must be one of added_tokens/,
  );
});
