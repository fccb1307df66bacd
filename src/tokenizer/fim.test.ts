/** @file Fill in the middle: the order of the parts, and vocabularies without markers. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { OperationalError } from "../base/errors.ts";
import { fimDocument, fimPrompt, supportsFim } from "./fim.ts";
import { SPECIAL_TOKENS } from "./special-tokens.ts";
import { learnedVocabulary, Tokenizer } from "./tokenizer.ts";

const vocabulary = learnedVocabulary({ left: new Int32Array(0), right: new Int32Array(0) });
const tokenizer = new Tokenizer(vocabulary);
const { bos, eos, fimBegin, fimHole, fimEnd } = SPECIAL_TOKENS;

test("a document is prefix, suffix, middle between their markers", () => {
  const ids = fimDocument(tokenizer, { prefix: "ab", middle: "cd", suffix: "ef" });
  assert.equal(tokenizer.decode(ids), `${bos}${fimBegin}ab${fimHole}ef${fimEnd}cd${eos}`);
});

test("a prompt is the document up to where the middle begins", () => {
  const document = fimDocument(tokenizer, { prefix: "ab", middle: "cd", suffix: "" });
  const prompt = fimPrompt(tokenizer, { prefix: "ab", suffix: "" });
  assert.deepEqual(document.subarray(0, prompt.length), prompt);
  assert.equal(document.length, prompt.length + 3);
});

test("markers in the parts are text", () => {
  const ids = fimPrompt(tokenizer, { prefix: fimHole, suffix: eos });
  assert.equal(ids.filter((id) => tokenizer.addedToken(id) !== undefined).length, 4);
});

test("a vocabulary without the markers is refused", () => {
  const without = new Tokenizer({ ...vocabulary, addedTokens: vocabulary.addedTokens.slice(0, 2) });
  assert.equal(supportsFim(tokenizer), true);
  assert.equal(supportsFim(without), false);
  assert.throws(
    () => fimPrompt(without, { prefix: "a", suffix: "b" }),
    (error) => error instanceof OperationalError && error.code === "tokenizer.fim",
  );
});
