/**
 * @file Bits per byte counts every byte once, by document, and agrees with what training reports.
 */
import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { openCpuDevice } from "../kernels/cpu.ts";
import { Model } from "../model/model.ts";
import { TINY } from "../model/test-support.ts";
import { trainBpe } from "../tokenizer/bpe-train.ts";
import { learnedVocabulary, Tokenizer } from "../tokenizer/tokenizer.ts";
import { validate } from "../training/validation.ts";
import { evaluateBitsPerByte } from "./bits-per-byte.ts";

const DOCUMENTS = [
  { name: "first", text: "the cat sat on the mat; ".repeat(7) },
  { name: "empty", text: "" },
  { name: "second", text: "größer 😀 \ud800 und the rat" },
  { name: "third", text: "a" },
];
const merges = trainBpe([DOCUMENTS[0]!.text], { vocabSize: 9 + 256 + 10, numAddedTokens: 9 });
const tokenizer = new Tokenizer(learnedVocabulary(merges));
const config = { ...TINY, vocabSize: tokenizer.vocabSize, numMtpModules: 1 };

describe("bits per byte", () => {
  it("of a model that knows nothing is the tokens' share of log2 of the vocabulary", async () => {
    const even = {
      config,
      evaluate: ({ numSequences, seqLength }: { numSequences: number; seqLength: number }) =>
        new Float32Array(numSequences * seqLength).fill(Math.log(config.vocabSize)),
    };
    const progress: number[] = [];
    const result = await evaluateBitsPerByte(even, tokenizer, DOCUMENTS, {
      seqLength: 7,
      numSequences: 3,
      onProgress: (done, total) => progress.push(done / total),
    });
    const perToken = Math.log2(config.vocabSize);
    for (const [index, { name, text }] of DOCUMENTS.entries()) {
      const cost = result.documents[index]!;
      assert.equal(cost.name, name);
      assert.equal(cost.bytes, Buffer.byteLength(text), name);
      const expected = tokenizer.encode(text).length * perToken;
      assert.ok(Math.abs(cost.bits - expected) < 1e-3, `${name}: ${cost.bits} bits`);
    }
    const bytes = DOCUMENTS.reduce((sum, { text }) => sum + Buffer.byteLength(text), 0);
    assert.equal(result.bytes, bytes);
    assert.ok(Math.abs(result.bitsPerByte - (result.tokens * perToken) / bytes) < 1e-6);
    assert.equal(progress.at(-1), 1);
  });

  it("is the number that training reports", async () => {
    await using device = await openCpuDevice({ numThreads: 1 });
    const model = new Model(device, config, { precision: "bf16", seed: 3 });
    const options = { seqLength: 16, numSequences: 2 };
    const result = await evaluateBitsPerByte(model, tokenizer, DOCUMENTS, options);
    const encoded = DOCUMENTS.map(({ text }) => tokenizer.encode(text));
    const source = {
      numDocuments: encoded.length,
      documentTokens: (document: number): number => encoded[document]!.length,
      read: (document: number, start: number, count: number): Int32Array =>
        encoded[document]!.slice(start, start + count),
    };
    const trained = validate(model, source, tokenizer, { sequenceLength: 16, microBatch: 5 });
    assert.equal(result.tokens, trained?.tokens);
    assert.ok(Math.abs(result.bitsPerByte - trained!.bitsPerByte) < 1e-6);
  });

  it("refuses documents without text", async () => {
    const silent = { config, evaluate: () => new Float32Array(8) };
    const result = evaluateBitsPerByte(silent, tokenizer, [{ name: "empty", text: "" }], {
      seqLength: 8,
    });
    await assert.rejects(result, { code: "data.empty" });
  });
});
