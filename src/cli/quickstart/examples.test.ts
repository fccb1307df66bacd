/** @file The quickstart's questions are cut from the text at the right places. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { Random } from "../../base/random.ts";
import { chooseCommentExamples, chooseGapExamples } from "./examples.ts";

const DOCUMENT = Array.from(
  { length: 30 },
  (_, index) => `
/**
 * Number ${index} of a list of functions that do a thing each.
 */
export declare function thing${index}(value: string, other: number): boolean;

export interface Part${index} { readonly name: string; readonly place: number; }
`,
).join("");

test("a comment example joins with its truth to the text of the document", () => {
  const examples = chooseCommentExamples([DOCUMENT], 5, new Random(1));
  assert.equal(examples.length, 5);
  for (const { prefix, comment, truth } of examples) {
    assert.ok(DOCUMENT.includes(prefix + truth));
    assert.ok(prefix.endsWith(`${comment}\n`));
    assert.match(
      truth,
      /^export declare function thing\d+\(value: string, other: number\): boolean;$/,
    );
  }
});

test("a gap example joins to the text of the document and ends with its line", () => {
  const examples = chooseGapExamples([DOCUMENT], 5, new Random(1));
  assert.equal(examples.length, 5);
  for (const { prefix, truth, suffix } of examples) {
    assert.ok(DOCUMENT.includes(prefix + truth + suffix));
    assert.ok(suffix.startsWith("\n"));
    assert.match(truth, /^ [^\n]+$/);
  }
});

test("examples are spread over the text, and the seed alone decides", () => {
  const places = (seed: number): number[] =>
    chooseCommentExamples([DOCUMENT], 5, new Random(seed)).map(({ truth }) =>
      Number(/\d+/.exec(truth)),
    );
  places(7).forEach((place, index) => {
    assert.ok(place >= index * 6 && place < (index + 1) * 6, `${place} in stretch ${index}`);
  });
  assert.deepEqual(places(7), places(7));
});

test("a text with fewer candidates gives what it has", () => {
  assert.deepEqual(chooseCommentExamples(["no comments here"], 5, new Random(1)), []);
  assert.deepEqual(chooseGapExamples(["short"], 5, new Random(1)), []);
});
