/** @file Command lines: what is read, what is refused, and in which words. */
import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { OperationalError } from "../base/errors.ts";
import type { Values } from "./declaration.ts";
import { editDistance, nearest } from "./nearest.ts";
import { asksForJson, parseLine } from "./parse.ts";

const bake = {
  name: "bake",
  summary: "bake a cake",
  usage: "KIND --flour PATH…",
  operands: { kind: { placeholder: "KIND", help: "which cake", choices: ["plain", "nut"] } },
  flags: {
    flour: {
      kind: "list",
      placeholder: "PATH",
      variadic: true,
      help: "flour",
      required: true,
      unless: "again",
    },
    topping: { kind: "list", placeholder: "NAME", help: "on top" },
    again: { kind: "switch", help: "bake the last one again" },
    eggs: {
      kind: "number",
      placeholder: "N",
      whole: true,
      least: 1,
      most: 12,
      help: "eggs",
      default: 3,
    },
    heat: { kind: "number", placeholder: "T", above: 0, help: "degrees" },
    oven: { kind: "text", placeholder: "NAME", choices: ["gas", "wood"], help: "oven" },
    name: { kind: "text", placeholder: "TEXT", help: "written on top" },
  },
  atMostOneOf: [["heat", "oven"]],
  examples: [],
} as const;

function values(...words: string[]): Values<typeof bake> {
  return parseLine(bake, words).values as Values<typeof bake>;
}

function refusal(...words: string[]): OperationalError {
  try {
    parseLine(bake, words);
  } catch (error) {
    assert.ok(error instanceof OperationalError, `${words.join(" ")} threw ${error}`);
    return error;
  }
  assert.fail(`${words.join(" ")} was accepted`);
}

describe("a command line", () => {
  test("gives every flag a value of its kind, and defaults to what was not said", () => {
    assert.deepEqual(values("nut", "--flour", "a", "--eggs=5", "--name", "x y"), {
      kind: "nut",
      flour: ["a"],
      topping: [],
      again: false,
      eggs: 5,
      heat: undefined,
      oven: undefined,
      name: "x y",
    });
  });

  test("reads a variadic list to the next flag, so that shell patterns work", () => {
    const given = values("plain", "--flour", "a", "b", "c", "--eggs", "2", "--flour", "d");
    assert.deepEqual(given.flour, ["a", "b", "c", "d"]);
    assert.deepEqual(values("--flour", "a", "--eggs", "2", "nut").kind, "nut");
    assert.deepEqual(values("--flour", "a", "b", "--", "nut").kind, "nut");
  });

  test("takes one word for each mention of a plain list", () => {
    assert.deepEqual(values("--topping", "a", "nut", "--flour", "f", "--topping", "b").topping, [
      "a",
      "b",
    ]);
  });

  test("accepts a value that begins with a dash after an equals sign", () => {
    assert.equal(values("nut", "--again", "--name=--x").name, "--x");
  });

  test("drops a requirement when the flag that stands for it is given", () => {
    assert.deepEqual(values("nut", "--again").flour, []);
  });

  test("asks for help before it asks for anything else", () => {
    assert.equal(parseLine(bake, ["--help"]).help, true);
    assert.equal(parseLine(bake, ["-h", "--json"]).json, true);
  });

  test("knows --json even where the rest is wrong, but not after --", () => {
    assert.equal(asksForJson(["--eggs", "no", "--json"]), true);
    assert.equal(asksForJson(["--", "--json"]), false);
  });
});

describe("a refusal", () => {
  const cases: readonly [words: string[], code: string, message: RegExp][] = [
    [["nut", "--flor", "a"], "usage.unknown-flag", /unknown flag --flor; did you mean --flour\?/],
    [["nut", "--zzz"], "usage.unknown-flag", /unknown flag --zzz\n/],
    [["nut", "-e", "3"], "usage.unknown-flag", /unknown flag -e/],
    [["nut", "--toString"], "usage.unknown-flag", /unknown flag --toString/],
    [["nut"], "usage.missing", /give --flour PATH, or --again: flour/],
    [["--again"], "usage.missing", /KIND is missing: which cake \(plain or nut\)/],
    [["cheese", "--again"], "usage.value", /KIND \(cheese\) must be plain or nut/],
    [["nut", "more", "--again"], "usage.unexpected-word", /unexpected word: more/],
    [
      ["nut", "--again", "--eggs", "0"],
      "usage.value",
      /--eggs \(0\) must be a whole number >= 1 and <= 12/,
    ],
    [["nut", "--again", "--eggs", "1.5"], "usage.value", /--eggs \(1.5\) must be a whole number/],
    [["nut", "--again", "--eggs", "0x3"], "usage.value", /--eggs \(0x3\)/],
    [["nut", "--again", "--heat", "0"], "usage.value", /--heat \(0\) must be a number > 0/],
    [["nut", "--again", "--heat"], "usage.value", /--heat needs a value: --heat T/],
    [["nut", "--again", "--heat="], "usage.value", /--heat needs a value/],
    [["nut", "--again=yes"], "usage.value", /--again takes no value \(yes was given\)/],
    [["nut", "--again", "--oven", "sun"], "usage.value", /--oven \(sun\) must be gas or wood/],
    [
      ["nut", "--again", "--eggs", "1", "--eggs", "2"],
      "usage.repeated",
      /--eggs was given 2 times/,
    ],
    [
      ["nut", "--heat", "1", "--oven", "gas"],
      "usage.conflict",
      /--heat and --oven exclude each other/,
    ],
  ];
  for (const [words, code, message] of cases) {
    test(`of \`${words.join(" ")}\` names what is wrong and what is right`, () => {
      const error = refusal(...words);
      assert.equal(error.code, code);
      assert.match(error.message, message);
      assert.match(error.message, /hadal bake --help/);
    });
  }
});

describe("the nearest name", () => {
  test("is found across a missing, a wrong, an extra and two swapped letters", () => {
    const names = ["steps", "tokens", "minutes"];
    for (const word of ["step", "stops", "stepss", "setps", "STEPS"]) {
      assert.equal(nearest(word, names), "steps", word);
    }
  });

  test("is not invented for a word unlike any of them", () => {
    assert.equal(nearest("flour", ["steps", "tokens"]), undefined);
  });

  test("is measured in edits, swaps counting one", () => {
    assert.equal(editDistance("", "abc"), 3);
    assert.equal(editDistance("abc", "abc"), 0);
    assert.equal(editDistance("ab", "ba"), 1);
    assert.equal(editDistance("kitten", "sitting"), 3);
  });
});
