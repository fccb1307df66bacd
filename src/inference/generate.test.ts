/**
 * @file Generation ends for the right reason with the right text, and caches change nothing but the
 * time.
 */
import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { openCpuDevice } from "../kernels/cpu.ts";
import { Model } from "../model/model.ts";
import { TINY } from "../model/test-support.ts";
import { trainBpe } from "../tokenizer/bpe-train.ts";
import { fimPrompt } from "../tokenizer/fim.ts";
import { learnedVocabulary, Tokenizer } from "../tokenizer/tokenizer.ts";
import { Decoder } from "./decoder.ts";
import { type GenerateOptions, generate, type LogitSource } from "./generate.ts";
import { continuationPrompt, gapPrompt } from "./prompt.ts";
import { GREEDY } from "./sampler.ts";
import { Session } from "./session.ts";

const TEXTS = ["the cat sat on the mat; the cat ate the rat"];
const tokenizer = new Tokenizer(
  learnedVocabulary(trainBpe(TEXTS, { vocabSize: 9 + 256 + 12, numAddedTokens: 9 })),
);
const OPTIONS: GenerateOptions = { sampling: GREEDY, seed: 1, maxTokens: 100 };

/**
 * Logits that make greedy decoding say `tokens`, one after another; more than the tokenizer has, as
 * padded models do.
 */
function sayer(tokens: Iterable<number>, contextTokens = 1000): LogitSource {
  const next = tokens[Symbol.iterator]();
  const logits = (): Float32Array => {
    const row = new Float32Array(tokenizer.vocabSize + 8);
    row[tokenizer.vocabSize + 3] = 9;
    row[next.next().value ?? tokenizer.eosId] = 5;
    return row;
  };
  return {
    contextTokens,
    keepCommon: () => 0,
    read: async () => logits(),
    append: logits,
  };
}

describe("generate", () => {
  const prompt = Int32Array.of(0, 20, 21);
  const said = tokenizer.encode("the cat 😀 sat");

  it("ends at the end token, which is neither in the tokens nor in the text", async () => {
    const pieces: string[] = [];
    const source = sayer([...said, tokenizer.eosId, 30]);
    const result = await generate(source, tokenizer, prompt, OPTIONS, (text) => pieces.push(text));
    assert.deepEqual([result.text, result.reason], ["the cat 😀 sat", "end"]);
    assert.deepEqual(result.tokens, [...said]);
    assert.equal(result.logProbabilities.length, said.length);
    assert.equal(pieces.join(""), result.text);
    assert.ok(pieces.includes("😀"), "a character comes whole, when its last byte is there");
  });

  it("ends at a stop string and gives nothing of it out", async () => {
    const pieces: string[] = [];
    const options = { ...OPTIONS, stopStrings: ["😀 s", "never"] };
    const result = await generate(sayer(said), tokenizer, prompt, options, (text) =>
      pieces.push(text),
    );
    assert.deepEqual([result.text, result.reason, result.stop], ["the cat ", "stop", "😀 s"]);
    assert.equal(pieces.join(""), "the cat ");
  });

  it("ends at the length asked for, with what was held back", async () => {
    const cut = [...said].findIndex((_, end) =>
      tokenizer.decode(said.slice(0, end + 1)).includes("\ufffd"),
    );
    const options = { ...OPTIONS, maxTokens: cut + 1, stopStrings: [" \ufffd!"] };
    const result = await generate(sayer(said), tokenizer, prompt, options);
    assert.deepEqual([result.text, result.reason], ["the cat \ufffd", "length"]);
    assert.equal(result.tokens.length, cut + 1);
  });

  it("ends at the end of the context, and refuses a prompt without room", async () => {
    const result = await generate(sayer(said, 6), tokenizer, prompt, OPTIONS);
    assert.deepEqual([result.tokens.length, result.reason], [3, "context"]);
    const full = generate(sayer(said, 3), tokenizer, prompt, OPTIONS);
    await assert.rejects(full, { code: "inference.context", message: /3 tokens.*takes 3/ });
    const empty = generate(sayer(said), tokenizer, new Int32Array(0), OPTIONS);
    await assert.rejects(empty, { code: "inference.prompt" });
    const none = generate(sayer(said), tokenizer, prompt, { ...OPTIONS, maxTokens: 0 });
    await assert.rejects(none, { code: "inference.length" });
  });

  it("ends when aborted, with what there is", async () => {
    const controller = new AbortController();
    const options = { ...OPTIONS, signal: controller.signal };
    const result = await generate(sayer(said), tokenizer, prompt, options, () =>
      controller.abort(),
    );
    assert.equal(result.reason, "aborted");
    assert.equal(result.tokens.length, 1);
  });
});

describe("session", () => {
  it("gives the same tokens with and without a cached beginning", async () => {
    await using device = await openCpuDevice({ numThreads: 1 });
    const config = { ...TINY, vocabSize: tokenizer.vocabSize, maxPositionEmbeddings: 700 };
    const model = new Model(device, config, { precision: "bf16", seed: 9 });
    const decoder = new Decoder(device, model, 2 * 700 + 64);
    const sampling = { temperature: 1, topK: 40, topP: 0.95, minP: 0 };
    const options = { sampling, seed: 4, maxTokens: 20, endTokens: [] };
    const prompt = Int32Array.from({ length: 600 }, (_, index) => (index * 7) % config.vocabSize);
    const fresh = new Session(decoder, 700);
    const first = await generate(fresh, tokenizer, prompt, options);
    const again = await generate(fresh, tokenizer, prompt, options);
    assert.deepEqual([first.numCachedTokens, again.numCachedTokens], [0, 599]);
    assert.deepEqual({ ...again, numCachedTokens: 0 }, first);
    const other = prompt.slice();
    other[300]! ^= 1;
    const branched = await generate(fresh, tokenizer, other, options);
    const alone = await generate(new Session(decoder, 700), tokenizer, other, options);
    assert.equal(branched.numCachedTokens, 300);
    assert.deepEqual({ ...branched, numCachedTokens: 0 }, alone);
    assert.notDeepEqual(alone.logProbabilities, first.logProbabilities);
  });
});

describe("prompts", () => {
  it("are whole where they fit", () => {
    const text = "the cat;";
    const { tokens, numPrefixCut, healing } = continuationPrompt(tokenizer, text, 50);
    assert.deepEqual([...tokens], [tokenizer.bosId, ...tokenizer.encode(text)]);
    assert.deepEqual([numPrefixCut, healing], [0, null]);
    const gap = { prefix: "the;", suffix: "t sat" };
    assert.deepEqual(gapPrompt(tokenizer, gap, 50).tokens, fimPrompt(tokenizer, gap));
  });

  it("keep what is nearest to the cursor, and tell what they cut", () => {
    const text = "the cat sat on the mat;".repeat(10);
    const all = tokenizer.encode(text);
    const { tokens, numPrefixCut } = continuationPrompt(tokenizer, text, 12);
    assert.deepEqual(tokens, all.slice(-12));
    assert.equal(numPrefixCut, all.length - 12);
    const gap = gapPrompt(tokenizer, { prefix: text, suffix: text }, 44);
    assert.equal(gap.tokens.length, 44);
    const [before, after] = [30, 10];
    const { specialId } = { specialId: tokenizer.specialId.bind(tokenizer) };
    assert.deepEqual(
      [...gap.tokens],
      [
        tokenizer.bosId,
        specialId("fimBegin"),
        ...all.slice(-before),
        specialId("fimHole"),
        ...all.slice(0, after),
        specialId("fimEnd"),
      ],
    );
    assert.equal(gap.numPrefixCut, all.length - before);
    assert.equal(gap.numSuffixCut, all.length - after);
    const short = gapPrompt(tokenizer, { prefix: "the", suffix: text }, 44);
    assert.equal(short.tokens.length, 44);
    assert.equal(short.numPrefixCut, 0);
  });
});
