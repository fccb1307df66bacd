/** @file Constraints against ajv and JavaScript's own regular expressions, over random ones. */
import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { Ajv2020 } from "ajv/dist/2020.js";
import { Random } from "../../base/random.ts";
import { compileConstraint } from "./compile.ts";
import { compilePattern } from "./expression-network.ts";
import { compileJsonSchema } from "./json-schema.ts";
import { generateText, newMask, readsText, startOf, testTrie } from "./test-support.ts";

const pick = <T>(random: Random, items: readonly T[]): T => items[random.below(items.length)]!;

/** A random schema of the supported kind that some value satisfies. */
function randomSchema(random: Random, depth: number): Record<string, unknown> {
  const kinds = [
    "string",
    "integer",
    "number",
    "boolean",
    "null",
    "enum",
    "const",
    "sized",
    "range",
  ];
  if (depth > 0) kinds.push("object", "object", "open", "array", "tuple", "anyOf", "any", "types");
  const inner = () => randomSchema(random, depth - 1);
  switch (pick(random, kinds)) {
    case "enum":
      return {
        enum: pick(random, [
          ["a", "ab", 1, null],
          ["é\n", { a: [1, "x"] }],
          [true, "true"],
        ]),
      };
    case "const":
      return { const: pick(random, [0, "abc", null, [], { b: 1 }]) };
    case "sized": {
      const minLength = random.below(4);
      return { type: "string", minLength, maxLength: minLength + random.below(4) };
    }
    case "range": {
      const minimum = random.below(3000) - 1500;
      return { type: "integer", minimum, maximum: minimum + random.below(2000) };
    }
    case "object": {
      const names = ["a", "ab", "b", 'q"', "é"].slice(0, random.below(6));
      const properties = Object.fromEntries(names.map((name) => [name, inner()]));
      const required = names.filter(() => random.below(2) === 0);
      return { type: "object", properties, required, additionalProperties: false };
    }
    case "open": {
      const properties = { a: inner(), abc: inner() };
      return { type: "object", properties, required: ["a"], additionalProperties: inner() };
    }
    case "array": {
      const minItems = random.below(3);
      return { type: "array", items: inner(), minItems, maxItems: minItems + random.below(3) };
    }
    case "tuple":
      return { type: "array", prefixItems: [inner(), inner()], minItems: 1, items: inner() };
    case "anyOf":
      return { anyOf: [inner(), inner(), { type: "null" }] };
    case "any":
      return {};
    case "types":
      return { type: ["string", "integer"], maxLength: 3, maximum: 30 };
    default:
      return { type: pick(random, ["string", "integer", "number", "boolean", "null"]) };
  }
}

const SPACES = ["", "", " ", "\n", "\n  ", "\n\t\t"];

/** JSON.stringify with random spaces. */
function spacedText(value: unknown, random: Random): string {
  const space = () => pick(random, SPACES);
  if (Array.isArray(value)) {
    const items = value.map((item) => space() + spacedText(item, random) + space());
    return items.length === 0 ? "[]" : `[${items.join(",")}]`;
  }
  if (typeof value !== "object" || value === null) return JSON.stringify(value);
  const members = Object.entries(value).map(
    ([key, item]) =>
      `${space()}${JSON.stringify(key)}${space()}:${space()}${spacedText(item, random)}${space()}`,
  );
  return members.length === 0 ? "{}" : `{${members.join(",")}}`;
}

describe("a constraint from a JSON schema", () => {
  const trie = testTrie();
  const ajv = new Ajv2020({ strict: false });

  it("lets through only what ajv accepts, whatever tokens are chosen", () => {
    const random = new Random(21);
    for (let round = 0; round < 150; round++) {
      const schema = randomSchema(random, 3);
      const text = generateText(startOf(compileJsonSchema(schema), trie), trie, random);
      const where = `round ${round}: ${JSON.stringify(schema)} gave ${text}`;
      assert.ok(ajv.validate(schema, JSON.parse(text)), where);
    }
  });

  it("lets through what is valid, however it is spaced and cut into tokens", () => {
    const random = new Random(22);
    for (let round = 0; round < 100; round++) {
      const schema = randomSchema(random, 3);
      const start = startOf(compileJsonSchema(schema), trie);
      const generated = generateText(start.fork(), trie, random);
      // JSON.parse puts names that are numbers first.
      if (/"\d+"\s*:/.test(generated)) continue;
      const value: unknown = JSON.parse(generated);
      const isEnum = /"(enum|const)"/.test(JSON.stringify(schema));
      const text = isEnum ? JSON.stringify(value) : spacedText(value, random);
      const where = `round ${round}: ${JSON.stringify(schema)} refuses ${JSON.stringify(text)}`;
      assert.ok(readsText(start, trie, text, random), where);
    }
  });

  it("accepts no changed text that ajv refuses", () => {
    const random = new Random(23);
    let numAccepted = 0;
    for (let round = 0; round < 100; round++) {
      const schema = randomSchema(random, 2);
      const start = startOf(compileJsonSchema(schema), trie);
      const text = generateText(start.fork(), trie, random);
      for (let change = 0; change < 10; change++) {
        const at = random.below(text.length + 1);
        const inserted = pick(random, ["", "0", '"', ",", "}", "]", "a", "-", " ", ".5", "null"]);
        const changed = text.slice(0, at) + inserted + text.slice(at + random.below(2));
        if (!readsText(start, trie, changed, random)) continue;
        numAccepted++;
        const where = `round ${round}: ${JSON.stringify(schema)} accepts ${changed}`;
        assert.ok(ajv.validate(schema, JSON.parse(changed)), where);
      }
    }
    assert.ok(numAccepted > 100, `${numAccepted} changes were harmless`);
  });

  it("has masks that agree with reading each token", () => {
    const random = new Random(24);
    const mask = newMask(trie);
    for (let round = 0; round < 40; round++) {
      const state = startOf(compileJsonSchema(randomSchema(random, 3)), trie);
      for (let step = 0; step < 12 && !state.isFinal; step++) {
        state.mask(mask);
        const allowed: number[] = [];
        for (let token = 0; token < trie.vocabSize; token++) {
          const isSet = ((mask[token >>> 5]! >>> (token & 31)) & 1) === 1;
          assert.equal(isSet, state.allows(token), `round ${round}, step ${step}, token ${token}`);
          if (isSet) allowed.push(token);
        }
        state.accept(pick(random, allowed));
      }
    }
  });

  it("follows recursion as deep as it goes", () => {
    const schema = {
      $ref: "#/$defs/tree",
      $defs: {
        tree: {
          type: "object",
          properties: {
            value: { type: "integer" },
            children: { type: "array", items: { $ref: "#/$defs/tree" } },
          },
          required: ["value", "children"],
          additionalProperties: false,
        },
      },
    };
    const random = new Random(25);
    const start = startOf(compileJsonSchema(schema), trie);
    let text = "";
    for (let depth = 0; depth < 300; depth++) text += '{"value":1,"children":[';
    assert.ok(readsText(start, trie, `${text}${"]}".repeat(300)}`, random));
    assert.ok(!readsText(start, trie, `${text}${"]}".repeat(299)}]`, random));
  });

  it("honours formats and patterns inside strings", () => {
    const random = new Random(26);
    const reads = (schema: unknown, value: string) =>
      readsText(startOf(compileJsonSchema(schema), trie), trie, JSON.stringify(value), random);
    const date = { type: "string", format: "date" };
    for (const day of ["2024-02-29", "2000-02-29", "2023-12-31"]) assert.ok(reads(date, day), day);
    for (const day of ["2023-02-29", "1900-02-29", "2023-04-31", "23-1-1"]) {
      assert.ok(!reads(date, day), day);
    }
    assert.ok(reads({ type: "string", format: "date-time" }, "2024-02-29T23:59:59.5+01:00"));
    assert.ok(reads({ type: "string", format: "ipv4" }, "255.0.10.1"));
    assert.ok(!reads({ type: "string", format: "ipv4" }, "256.0.10.1"));
    assert.ok(reads({ type: "string", pattern: 'a"\\\\' }, 'xx a"\\ \n yy'));
    assert.ok(!reads({ type: "string", pattern: "^b+$" }, "bbbc"));
  });

  it("takes any object for plain JSON, and nothing else", () => {
    const random = new Random(27);
    for (let round = 0; round < 40; round++) {
      const state = startOf(compileConstraint({ kind: "json" }), trie);
      const value: unknown = JSON.parse(generateText(state, trie, random));
      assert.ok(typeof value === "object" && value !== null && !Array.isArray(value));
    }
  });

  it("refuses what it does not support by its name and place", () => {
    const refusals: readonly (readonly [unknown, RegExp])[] = [
      [{ type: "object", properties: { a: { not: {} } } }, /#\/properties\/a: the keyword "not"/],
      [{ type: "array", uniqueItems: true }, /"uniqueItems"/],
      [{ oneOf: [{}, {}] }, /oneOf of several/],
      [{ allOf: [{}, {}] }, /allOf of several/],
      [{ type: "number", minimum: 0 }, /minimum is supported for integers only/],
      [{ type: "string", pattern: "(?=a)" }, /look-around/],
      [{ type: "string", pattern: "a", maxLength: 3 }, /only one of length/],
      [{ type: "string", format: "email" }, /format "email"/],
      [{ $ref: "http://example.com" }, /\$ref must point into/],
      [{ $ref: "#/$defs/none" }, /points to nothing/],
      [{ type: "text" }, /the value of type is malformed/],
      [{ type: "array", minItems: -1 }, /minItems is malformed/],
      [{ enum: [] }, /enum is malformed/],
      [7, /neither an object nor a boolean/],
      [{ type: "integer", minimum: 3, maximum: 2 }, /no finite text/],
      [{ type: "string", enum: [1] }, /no finite text/],
      [false, /no finite text/],
      [{ type: "object", properties: { a: { $ref: "#" } }, required: ["a"] }, /no finite text/],
      [{ $ref: "#" }, /no finite text/],
      [{ anyOf: [{ $ref: "#" }, { type: "null" }] }, /refers to itself/],
    ];
    for (const [schema, message] of refusals) {
      assert.throws(() => compileJsonSchema(schema), message, JSON.stringify(schema));
    }
  });

  it("ends hostile schemas with an error", () => {
    let deep: unknown = {};
    for (let depth = 0; depth < 5000; depth++) deep = { type: "array", items: deep };
    const wide = Object.fromEntries(Array.from({ length: 20_000 }, (_, i) => [`name${i}`, {}]));
    const hostile: unknown[] = [
      { type: "array", minItems: 1e9 },
      {
        type: "array",
        items: { type: "string", maxLength: 3000 },
        maxItems: 3000,
        minItems: 3000,
        prefixItems: Array.from({ length: 50 }, () => ({ type: "string", maxLength: 5000 })),
      },
      { type: "string", maxLength: 1e9 },
      { type: "string", pattern: "((((a{1,99}){1,99}){1,99}){1,99})" },
      { type: "string", pattern: "(".repeat(9000) },
      { type: "object", properties: wide },
      { type: "object", properties: { ["x".repeat(5000)]: {} }, additionalProperties: true },
      { enum: Array.from({ length: 100_000 }, (_, i) => i) },
      deep,
    ];
    for (const schema of hostile) {
      assert.throws(() => compileJsonSchema(schema), { name: "OperationalError" });
    }
  });
});

describe("a constraint from a regular expression", () => {
  const trie = testTrie();

  it("accepts what JavaScript matches as a whole", () => {
    const random = new Random(31);
    const piece = (depth: number): string => {
      const atoms = ["a", "b", "é", "\\d", "[^a]", "[ab-d]", ".", "\\.", "\\u{1f600}"];
      const atom =
        depth > 0 && random.below(2) === 0 ? `(${choice(depth - 1)})` : pick(random, atoms);
      return atom + pick(random, ["", "", "*", "+", "?", "{2}", "{1,3}", "{0,}", "*?"]);
    };
    const sequence = (depth: number): string =>
      Array.from({ length: random.below(4) }, () => piece(depth)).join("");
    const choice = (depth: number): string =>
      Array.from({ length: 1 + random.below(2) }, () => sequence(depth)).join("|");
    let numMatches = 0;
    for (let round = 0; round < 300; round++) {
      const pattern = choice(2);
      const start = startOf(compilePattern(pattern), trie);
      const oracle = new RegExp(`^(?:${pattern})$`, "u");
      const texts = Array.from({ length: 8 }, () =>
        Array.from({ length: random.below(6) }, () =>
          pick(random, ["a", "b", "c", "é", "1", ".", "\n", "\u{1f600}"]),
        ).join(""),
      );
      for (const text of texts) {
        const isMatch = oracle.test(text);
        if (isMatch) numMatches++;
        const where = `round ${round}: /${pattern}/ on ${JSON.stringify(text)}`;
        assert.equal(readsText(start, trie, text, random), isMatch, where);
      }
    }
    assert.ok(numMatches > 200, `${numMatches} matches`);
  });

  it("follows in linear time what makes others backtrack", () => {
    const random = new Random(32);
    const start = startOf(compilePattern("(a+)+b|(a|aa)*c|(.*a){12}x"), trie);
    assert.ok(!readsText(start, trie, "a".repeat(3000), random));
    assert.ok(readsText(start, trie, `${"a".repeat(3000)}c`, random));
  });

  it("refuses what no finite automaton follows", () => {
    for (const pattern of [
      "(a)\\1",
      "(?=a)",
      "\\bx",
      "a^b",
      "[z-a]",
      "a{3,1}",
      "(",
      "*",
      "\\p{L}",
    ]) {
      assert.throws(() => compilePattern(pattern), { code: "constraint.pattern" }, pattern);
    }
  });
});
