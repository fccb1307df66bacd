/** @file The tidy rules themselves: each must find what it is for, and leave good code alone. */
import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { rewrap } from "../rewrap.ts";
import { checkBans, checkText } from "./bans.ts";
import { checkDocument, type Known } from "./docs.ts";
import { checkFloors } from "./floors.ts";
import { checkColumns, checkExcesses, checkHeader, excesses } from "./shape.ts";
import { type Finding, parseSource } from "./source.ts";

const messages = (findings: readonly Finding[]): string[] =>
  findings.map(({ line, message }) => `${line}: ${message}`);

describe("the floors", () => {
  const at = (path: string, text: string): string[] =>
    messages(checkFloors(parseSource(path, text), ["koffi", "@scope/kept"]));

  test("refuse an import upwards, in every form an import can take", () => {
    const forms = [
      'import { x } from "../kernels/kernel.ts";',
      'import type { X } from "../kernels/kernel.ts";',
      'export { x } from "../kernels/kernel.ts";',
      'type X = import("../kernels/kernel.ts").X;',
      'const x = await import("../kernels/kernel.ts");',
      'const x = siblingModule("../kernels/worker", import.meta.url);',
      'const x = new URL("../kernels/worker.ts", import.meta.url);',
    ];
    for (const form of forms) {
      const [message] = at("src/numerics/bf16.ts", form);
      assert.match(message ?? "nothing found", /1: numerics may not import kernels/, form);
    }
  });

  test("refuse a sibling on the same floor", () => {
    const found = at("src/numerics/bf16.ts", 'import { x } from "../codegen/x64/registers.ts";');
    assert.match(found[0]!, /numerics may not import codegen/);
  });

  test("admit the own folder, lower floors, and anything in the entry and in tests", () => {
    assert.deepEqual(at("src/kernels/a/b.ts", 'import { x } from "../c.ts";'), []);
    assert.deepEqual(at("src/kernels/a/b.ts", 'import { x } from "../../base/errors.ts";'), []);
    assert.deepEqual(at("src/index.ts", 'export { x } from "./cli/main.ts";'), []);
    assert.deepEqual(at("src/base/a.test.ts", 'import { x } from "../cli/main.ts";'), []);
    assert.deepEqual(at("src/base/a.ts", 'const x = new URL("x", base);'), []);
  });

  test("refuse what lies outside src, and tests outside tests", () => {
    assert.match(at("src/cli/a.ts", 'import { x } from "../../tools/x.ts";')[0]!, /src may not/);
    assert.match(at("src/cli/a.ts", 'import { x } from "./b.test.ts";')[0]!, /only tests import/);
  });

  test("refuse the system where it may not be met", () => {
    const fs = 'import { readFileSync } from "node:fs";';
    assert.match(at("src/model/a.ts", fs)[0]!, /model may not import node:fs/);
    assert.match(at("src/training/loss.ts", fs)[0]!, /training may not import/);
    assert.deepEqual(at("src/training/data/a.ts", fs), []);
    assert.match(at("src/device/a.ts", 'import fs from "fs";')[0]!, /write node:fs/);
    assert.match(at("src/model/a.ts", "const x = process.env;")[0]!, /may not use process/);
    assert.deepEqual(at("src/device/a.ts", "const x = process.arch;"), []);
  });

  test("refuse a package that is no runtime dependency", () => {
    assert.match(at("src/device/a.ts", 'import x from "left-pad";')[0]!, /left-pad is not among/);
    assert.deepEqual(at("src/device/a.ts", 'import x from "koffi";'), []);
    assert.deepEqual(at("src/device/a.ts", 'import x from "@scope/kept/part";'), []);
  });
});

describe("the shape rules", () => {
  const source = (text: string): ReturnType<typeof parseSource> => parseSource("src/a.ts", text);

  test("want a header first", () => {
    assert.deepEqual(checkHeader(source("/** @file What it is. */\n")), []);
    assert.deepEqual(checkHeader(source("/**\n * @file What it is.\n */\n")), []);
    assert.equal(checkHeader(source('import "x";\n/** @file Late. */\n')).length, 1);
    assert.equal(checkHeader(source("/** @file */\n")).length, 1);
  });

  test("count columns in characters, and spare an address", () => {
    assert.deepEqual(checkColumns(source("é".repeat(100))), []);
    assert.match(messages(checkColumns(source(`\n${"x".repeat(101)}`)))[0]!, /^2: 101 columns/);
    assert.deepEqual(checkColumns(source(`// https://example.org/${"x".repeat(100)}`)), []);
  });

  const longFunction = (lines: number): string =>
    `function f(): void {\n${"  g();\n".repeat(lines - 2)}}\n`;

  test("find long functions, whatever their form, and long files", () => {
    assert.deepEqual(excesses(source(longFunction(70))), []);
    assert.deepEqual(
      excesses(source(longFunction(71))).map(({ key, lines }) => [key, lines]),
      [["src/a.ts#f", 71]],
    );
    const body = "g();\n".repeat(70);
    const forms = [`const f = () => {\n${body}};`, `class C { f() {\n${body}} }`];
    for (const form of forms) assert.equal(excesses(source(form))[0]?.key, "src/a.ts#f", form);
    assert.deepEqual(excesses(source("x;\n".repeat(500))), []);
    assert.equal(excesses(source("x;\n".repeat(501)))[0]?.key, "src/a.ts");
  });

  test("count a test of 71 lines, but not the group it is in", () => {
    const group = `describe("a", () => {\n${'test("b", () => {});\n'.repeat(71)}});`;
    assert.deepEqual(excesses(source(group)), []);
    assert.equal(excesses(source(`test("a", () => {\n${"g();\n".repeat(70)}});`)).length, 1);
  });

  test("let the allowlist admit a length, and shrink only", () => {
    const found = excesses(source(longFunction(80)));
    const key = "src/a.ts#f";
    assert.deepEqual(checkExcesses(found, { [key]: 80 }), []);
    assert.match(messages(checkExcesses(found, {}))[0]!, /f has 80 lines/);
    assert.match(messages(checkExcesses(found, { [key]: 79 }))[0]!, /f has 80 lines/);
    assert.match(messages(checkExcesses(found, { [key]: 90 }))[0]!, /lower its number to 80/);
    assert.match(messages(checkExcesses([], { [key]: 80 }))[0]!, /take it off the list/);
  });
});

describe("the bans", () => {
  const found = (path: string, text: string): string[] =>
    messages(checkBans(parseSource(path, text)));

  test("name what to write instead", () => {
    const banned: readonly [string, RegExp][] = [
      ['throw new Error("x");', /new Error: use assert/],
      ['throw new RangeError("x");', /new RangeError/],
      ['console.log("x");', /console: return the value/],
      ["const x = Math.random();", /Math\.random: use Random/],
      ["export default function f() {}", /default export/],
      ["export default 1;", /default export/],
      ["enum E { A }", /enum: use a const array/],
      ["namespace N { export const x = 1; }", /namespace/],
      ["const x: any = 1;", /any: use unknown/],
      ['test.only("x", f);', /\.only/],
    ];
    for (const [text, message] of banned) {
      assert.match(found("src/model/a.ts", text)[0] ?? "nothing found", message, text);
    }
  });

  test("leave alone what only looks alike", () => {
    const fine = [
      "// new Error, console.log, any",
      'throw new OperationalError("data.missing", "x");',
      'const x = "Math.random()";',
      "switch (x) { default: f(); }",
      "declare namespace WebAssembly { const x: number; }",
      "declare global { namespace N { const x: number; } }",
    ];
    for (const text of fine) assert.deepEqual(found("src/model/a.ts", text), [], text);
    assert.deepEqual(found("src/model/a.test.ts", 'throw new Error("x");'), []);
    assert.deepEqual(found("src/cli/a.ts", 'console.log("x");'), []);
  });

  test("cover notes to self, silenced compilers and paths of one machine in any text", () => {
    const banned = [
      `// ${"TO"}DO later`,
      ` * ${"FIX"}ME`,
      `// @ts-${"ignore"}`,
      `see \`/${"home"}/ann/hadal\``,
    ];
    for (const line of banned) assert.equal(checkText("a", line).length, 1, line);
    const fine = ["const TODO = 1;", "https://example.org/home/ann", "src/home/x", "/proc/cpuinfo"];
    for (const line of fine) assert.deepEqual(checkText("a", line), [], line);
  });
});

describe("the documents", () => {
  const known: Known = {
    paths: new Set([
      "src",
      "src/kernels",
      "src/kernels/kernel.ts",
      "docs",
      "docs/log.md",
      "bin/x.js",
    ]),
    words: new Set([
      "parseLine",
      "kv_lora_rank",
      "Interruption",
      "orderly",
      "nightly",
      "WorkerPool",
    ]),
    scripts: ["test", "check"],
    packages: ["koffi", "@scope/kept"],
    verbs: new Map([
      ["", ["help", "version"]],
      ["train", ["data", "out", "help"]],
    ]),
  };
  const found = (text: string): string[] => messages(checkDocument("docs/page.md", text, known));

  test("may name what exists", () => {
    const fine = [
      "`src/kernels/`, `kernels/kernel.ts`, `kernel.ts`, `log.md`, `./bin/x.js`",
      "`parseLine(words)`, `Interruption.orderly`, `kv_lora_rank`, `Interruption#orderly`",
      "`npm test`, `npm ci && npm test`, `npm run check`, `npm test -- --nightly`",
      "`hadal train --data a --out runs/x`, `npx hadal --version`, `hadal VERB --help`, `--data`",
      "`koffi/x`, `@scope/kept`, `runs/NAME/config.json`, `tokens/s`, `config.json`, `src/*/x.ts`",
      "`.ts`, `@other/package`, `Trainer`, `--nightly`, `f32`, `hidden size`, " +
        "and src/nowhere.ts in prose",
      "[log](log.md), [web](https://example.org/x), [above](#top), [root](../bin/x.js)",
      "    hadal train --data x   # --comment",
      "```sh\n$ HADAL_KERNELS=wasm hadal train --data x | head\n```",
      "```ts\nconst noSuchThing = someUnknownCall(1);\n```",
    ];
    for (const text of fine) assert.deepEqual(found(text), [], text);
  });

  test("may not name what does not exist", () => {
    const wrong: readonly [string, RegExp][] = [
      ["see `src/kernels/gone.ts`", /1: src\/kernels\/gone\.ts does not exist/],
      ["\n`gone.ts`", /2: gone\.ts does not exist/],
      ["`kernels/gone`", /kernels\/gone does not exist/],
      ["`parseLines(words)`", /no source says parseLines/],
      ["`Interruption.disorderly`", /no source says disorderly/],
      ["`q_lora_rank`", /no source says q_lora_rank/],
      ["`npm run deploy`", /no script deploy/],
      ["`npm ci && npm rest`", /no script rest/],
      ["`hadal dance`", /hadal has no verb dance/],
      ["`hadal train --steps 3`", /hadal train has no flag --steps/],
      ["    npx hadal train --data=x --of y", /no flag --of/],
      ["```\n$ hadal --versoin\n```", /2: hadal +has no flag --versoin/],
      ["`--gone`", /no program here knows --gone/],
      ["`node bin/y.js`", /bin\/y\.js does not exist/],
      ["[log](logs.md)", /the link leads to docs\/logs\.md/],
    ];
    for (const [text, message] of wrong) {
      assert.match(found(text)[0] ?? "nothing found", message, text);
    }
  });
});

describe("the comment wrapper", () => {
  const word = "word";
  const long = Array.from({ length: 30 }, () => word).join(" ");

  test("wraps a wide comment, whatever its form, and keeps every word", () => {
    for (const text of [`/** ${long} */`, `/**\n * ${long}\n */`, `  // ${long}`]) {
      const wrapped = rewrap(text);
      for (const line of wrapped.split("\n")) assert.ok(line.length <= 100, line);
      assert.equal(wrapped.split(word).length, 31);
      assert.equal(rewrap(wrapped), wrapped, "wrapping twice changes nothing");
    }
  });

  test("joins the paragraph that follows, not the next one, a list item or a tag", () => {
    const next = "/**\n * x\n *\n * y\n */".replace("x", long);
    assert.match(rewrap(next), /word\n \*\n \* y\n/);
    const item = `/**\n * - ${long}\n *   end\n * - b\n * @file c\n */`;
    assert.match(rewrap(item), /\n \* {3}word[ a-z]* end\n \* - b\n \* @file c\n/);
  });

  test("leaves narrow comments, code and tables alone", () => {
    const table = ` * ${"a".repeat(60)}   ${"b".repeat(60)}`;
    const code = `const x = "${"y".repeat(120)}";`;
    for (const text of ["// short\n// lines", table, code]) assert.equal(rewrap(text), text);
  });
});
