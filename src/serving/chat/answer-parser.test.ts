/** @file Answers taken apart: the same however the text is cut, whatever breaks off. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { Random } from "../../base/random.ts";
import { type AnswerForm, AnswerParser, type Delta } from "./answer-parser.ts";

const PLAIN: AnswerForm = { isThinking: false, hasTools: true, forcedTool: null };
const CALLS_V3 =
  '<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>a\n```json\n{"x": 1}\n```' +
  "<｜tool▁call▁end｜>\n<｜tool▁call▁begin｜>function<｜tool▁sep｜>b\n```json\n{}\n```" +
  "<｜tool▁call▁end｜><｜tool▁calls▁end｜>";
const CALLS_V31 =
  '<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>a<｜tool▁sep｜>{"x": 1}<｜tool▁call▁end｜>' +
  "<｜tool▁call▁begin｜>b<｜tool▁sep｜>{}<｜tool▁call▁end｜><｜tool▁calls▁end｜>";

interface Parsed {
  reasoning: string;
  content: string;
  calls: [name: string, text: string][];
}

function parse(pieces: readonly string[], form: AnswerForm): Parsed {
  const parser = new AnswerParser(form);
  const parsed: Parsed = { reasoning: "", content: "", calls: [] };
  const take = (delta: Delta): void => {
    if (delta.kind === "toolCall") parsed.calls.push([delta.name, ""]);
    else if (delta.kind === "toolArguments") parsed.calls[delta.index]![1] += delta.text;
    else parsed[delta.kind] += delta.text;
  };
  for (const piece of pieces) parser.push(piece).forEach(take);
  parser.end().forEach(take);
  return parsed;
}

test("both of DeepSeek's formats give the same calls", () => {
  const calls = [
    ["a", '{"x": 1}'],
    ["b", "{}"],
  ];
  for (const text of [CALLS_V3, CALLS_V31]) {
    assert.deepEqual(parse([`Well. ${text}`], PLAIN), { reasoning: "", content: "Well. ", calls });
  }
});

test("reasoning ends at its mark, or with the text", () => {
  const thinking = { ...PLAIN, isThinking: true };
  assert.deepEqual(parse(["\nhm\n</think>\n\nyes"], thinking), {
    reasoning: "hm",
    content: "yes",
    calls: [],
  });
  assert.equal(parse(["still thinking </thi"], thinking).reasoning, "still thinking </thi");
  assert.equal(parse(["\n\n<think>hm</think>yes"], PLAIN).reasoning, "hm");
  assert.equal(parse(["<thin air"], PLAIN).content, "<thin air");
});

test("without tools their marks are text, and with a forced tool all text is arguments", () => {
  assert.equal(parse([CALLS_V3], { ...PLAIN, hasTools: false }).content, CALLS_V3);
  const forced = parse(['{"x"', ": 1}"], { ...PLAIN, forcedTool: "f" });
  assert.deepEqual(forced.calls, [["f", '{"x": 1}']]);
});

test("a call that breaks off keeps what there was", () => {
  const broken = CALLS_V3.slice(0, CALLS_V3.indexOf("```<"));
  assert.deepEqual(parse([broken], PLAIN).calls, [["a", '{"x": 1}']]);
  const unnamed = "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>functio";
  assert.equal(parse([unnamed], PLAIN).content, "<｜tool▁call▁begin｜>functio");
});

test("the parts do not depend on how the text is cut into pieces", () => {
  const seed = 7;
  const random = new Random(seed, "pieces");
  const parts = [
    ...["<think>", "</think>", "<｜tool▁calls▁begin｜>", "<｜tool▁call▁begin｜>", "function"],
    ...["<｜tool▁sep｜>", "\n```json\n", "\n```", "<｜tool▁call▁end｜>", "<｜tool▁calls▁end｜>"],
    ...["\n", " ", "text", "<", "`", "{}", CALLS_V3, CALLS_V31],
  ];
  for (let round = 0; round < 2000; round++) {
    const text = Array.from(
      { length: random.below(9) },
      () => parts[random.below(parts.length)]!,
    ).join("");
    const form = {
      isThinking: random.below(2) === 0,
      hasTools: random.below(4) > 0,
      forcedTool: null,
    };
    const pieces: string[] = [];
    for (let at = 0; at < text.length; ) {
      const next = at + 1 + random.below(6);
      pieces.push(text.slice(at, next));
      at = next;
    }
    const context = `seed ${seed}, round ${round}: ${JSON.stringify([text, pieces])}`;
    assert.deepEqual(parse(pieces, form), parse([text], form), context);
  }
});
