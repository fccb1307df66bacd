/** @file Where a pass is cut into two micro-batches. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { Random } from "../base/random.ts";
import { TINY } from "../model/test-support.ts";
import type { LatentCache } from "./latent-cache.ts";
import { cutInTwo, type PassTokens, tokenWorkOf } from "./micro-batches.ts";

const SEED = 5;

/** A pass over so many tokens of each sequence, from these positions on; tokens are numbered. */
function passOf(parts: readonly (readonly [count: number, position: number])[]): PassTokens {
  let firstToken = 0;
  const sequences = parts.map(([count, position], index) => {
    const sequence = { cache: { index } as unknown as LatentCache, firstToken, count, position };
    firstToken += count;
    return sequence;
  });
  return { sequences, tokens: Int32Array.from({ length: firstToken }, (_, row) => row) };
}

/** Each row as its token, its sequence and its position. */
function rowsOf({ sequences, tokens }: PassTokens): string[] {
  const rows: string[] = [];
  for (const { cache, firstToken, count, position } of sequences) {
    assert.equal(firstToken, rows.length);
    const { index } = cache as unknown as { readonly index: number };
    for (let row = 0; row < count; row++) {
      rows.push(`${tokens[firstToken + row]} ${index} ${position + row}`);
    }
  }
  assert.equal(rows.length, tokens.length);
  return rows;
}

test("both parts together are the pass, in order, and neither is empty", () => {
  const random = new Random(SEED, "passes");
  const workOf = tokenWorkOf(TINY);
  for (let round = 0; round < 200; round++) {
    const parts = Array.from({ length: 1 + random.below(4) }, () => {
      return [1 + random.below(9), random.below(60)] as const;
    });
    const pass = passOf([...parts, [1, 0]]);
    const [first, second] = cutInTwo(pass, workOf);
    assert.ok(first.tokens.length > 0 && second.tokens.length > 0, JSON.stringify(parts));
    assert.deepEqual([...rowsOf(first), ...rowsOf(second)], rowsOf(pass), JSON.stringify(parts));
    const worksOf = ({ sequences }: PassTokens): number[] =>
      sequences.flatMap(({ count, position }) =>
        Array.from({ length: count }, (_, row) => workOf(position + row)),
      );
    const [a, b] = [first, second].map((part) => worksOf(part).reduce((x, y) => x + y, 0));
    assert.ok(Math.abs(a! - b!) <= Math.max(...worksOf(pass)), `${a} and ${b}`);
  }
});

test("a long prompt is cut behind its middle, where later tokens see more", () => {
  const [first, second] = cutInTwo(passOf([[100, 0]]), (position) => position + 1);
  assert.equal(first.tokens.length, 71);
  assert.deepEqual(
    second.sequences.map(({ firstToken, count, position }) => [firstToken, count, position]),
    [[0, 29, 71]],
  );
});
