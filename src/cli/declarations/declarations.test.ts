/**
 * @file The declarations of all verbs: their own examples parse, their names are the flags' names.
 */
import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { verbHelp } from "../help.ts";
import { COMMON_FLAGS, parseLine } from "../parse.ts";
import { VERBS } from "../verbs.ts";
import { DECLARATIONS } from "./all.ts";
import { quickstart } from "./quickstart.ts";
import { train } from "./train.ts";

/** The words of an example, without the environment before `hadal` and with quotes taken off. */
function wordsOf(command: string): string[] {
  const words: string[] = command.match(/'[^']*'|\S+/g) ?? [];
  return words.slice(words.indexOf("hadal") + 1).map((word) => word.replaceAll("'", ""));
}

for (const declaration of DECLARATIONS) {
  describe(`hadal ${declaration.name}`, () => {
    test("accepts its own examples", () => {
      assert.ok(declaration.examples.length > 0, "help without an example");
      for (const { command } of declaration.examples) {
        const [name, ...words] = wordsOf(command);
        assert.equal(name, declaration.name, command);
        parseLine(declaration, words);
      }
    });

    test("names only flags that exist in its groups and conditions", () => {
      const named = [
        ...(declaration.atMostOneOf ?? []).flat(),
        ...Object.values(declaration.flags).flatMap((flag) =>
          "unless" in flag && flag.unless !== undefined ? [flag.unless] : [],
        ),
        ...[...declaration.usage.matchAll(/--([a-z-]+)/g)].map(([, name]) => name!),
      ];
      for (const name of named) assert.ok(Object.hasOwn(declaration.flags, name), `--${name}`);
    });

    test("gives no flag the name of a common one, nor one name to a flag and an operand", () => {
      const taken = [...Object.keys(COMMON_FLAGS), ...Object.keys(declaration.operands ?? {})];
      for (const name of Object.keys(declaration.flags)) assert.ok(!taken.includes(name), name);
    });

    test("has help that fits a terminal of 80 columns", () => {
      for (const line of verbHelp(declaration, 80).split("\n")) {
        assert.ok(line.length <= 80, line);
      }
    });
  });
}

test("verbs that train for minutes say what is not counted", () => {
  for (const verb of [train, quickstart]) {
    assert.match(verb.flags.minutes.help, /data, last evaluation not counted/);
  }
});

describe("the table of verbs", () => {
  test("holds declared verbs only, in the declared order", () => {
    const order = VERBS.map(({ declaration }) => DECLARATIONS.indexOf(declaration));
    assert.deepEqual(
      order,
      order.toSorted((left, right) => left - right),
    );
    assert.ok(!order.includes(-1), "an undeclared verb is registered");
  });

  test("loads every verb it lists", async () => {
    for (const { load } of VERBS) assert.equal(typeof (await load()), "function");
  });
});

test("every example of hadal train says where the run ends, or carries one on", () => {
  for (const { command } of train.examples) assert.match(command, / --(steps|minutes|resume) ?/);
});
