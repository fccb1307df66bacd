/** @file What `hadal serve` says of flags that do not go together, before it loads anything. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { FakeTerminal } from "../../test/fake-terminal.ts";
import { EXIT_USAGE } from "./exit-codes.ts";
import { Interruption } from "./interruption.ts";
import { main } from "./main.ts";
import { VERBS } from "./verbs.ts";

async function serve(...words: readonly string[]): Promise<readonly [number, string]> {
  const [stdout, stderr] = [0, 1].map(() => new FakeTerminal({ isTTY: false, columns: 80 }));
  const interruption = new Interruption(() => {});
  const context = { stdout: stdout!, stderr: stderr!, env: {}, interruption };
  const code = await main(["serve", "--model", "nowhere", ...words], VERBS, context);
  return [code, stderr!.text];
}

test("flags of expert ranks without any are refused, whatever they say", async () => {
  for (const [words, named] of [
    [["--redundant-experts", "4"], /^error: --redundant-experts 4 .*give --expert-ranks/],
    [["--redundant-experts", "0"], /^error: --redundant-experts 0 .*give --expert-ranks/],
    [["--rebalance-tokens", "65536"], /^error: --rebalance-tokens 65536 .*give --expert-ranks/],
    [["--rebalance-tokens", "0", "--expert-ranks", "1"], /^error: --rebalance-tokens 0 /],
    [["--rebalance-tokens", "7", "--role", "split"], /^error: --rebalance-tokens 7 /],
    [["--expert-ranks", "2", "--role", "split"], /^error: --expert-ranks 2 .*leave out --role/],
  ] as const) {
    const [code, said] = await serve(...words);
    assert.equal(code, EXIT_USAGE, said);
    assert.match(said, named);
  }
});
