/** @file Compiled constraints: kept up to a bound, compiled two at a time, given up when asked. */
import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { trainBpe } from "../../../tokenizer/bpe-train.ts";
import { learnedVocabulary, Tokenizer } from "../../../tokenizer/tokenizer.ts";
import type { Constraint } from "../../constraint/constraint.ts";
import type { ConstraintSpec } from "../api.ts";
import { ConstraintCompiler } from "./constraint-compiler.ts";

const NEVER = new AbortController().signal;
const tokenizer = new Tokenizer(
  learnedVocabulary(trainBpe(["a cat"], { vocabSize: 9 + 256 + 2, numAddedTokens: 9 })),
);

function wordOf(index: number): ConstraintSpec {
  return { kind: "regex", pattern: `word${index}` };
}

describe("the compiler of constraints", () => {
  it("keeps the last ones and gives the same object for the same constraint", async () => {
    const compiler = new ConstraintCompiler(tokenizer, 4);
    const all: Constraint[] = [];
    for (let index = 0; index < 7; index++) all.push(await compiler.compile(wordOf(index), NEVER));
    assert.equal(compiler.numKept, 4);
    assert.equal(await compiler.compile(wordOf(6), NEVER), all[6]);
    assert.notEqual(await compiler.compile(wordOf(0), NEVER), all[0]);
    await compiler.close();
  });

  it("lets those who wait for a thread leave, and goes on with the others", async () => {
    const compiler = new ConstraintCompiler(tokenizer);
    const controller = new AbortController();
    const left = Array.from({ length: 6 }, (_, index) =>
      assert.rejects(compiler.compile(wordOf(index), controller.signal), {
        code: "constraint.time",
      }),
    );
    const kept = compiler.compile(wordOf(9), NEVER);
    controller.abort();
    await Promise.all(left);
    await kept;
    assert.equal(compiler.numKept, 1);
    await compiler.close();
  });
});
