/**
 * @file Latent attention over tiles, the processor's and emulated ones: a row's bits are its own,
 * whatever stands beside it. That it is right is the conformance suite's to say; here the emulated
 * tiles are held against the reference too.
 */
import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { Random } from "../../base/random.ts";
import { toBf16 } from "../../numerics/bf16.ts";
import { mismatch, toleranceFor } from "../../numerics/tolerance.ts";
import { testedTiles } from "../matmul/x64-tiles-test-support.ts";
import { nativeThread } from "../native-thread-test-support.ts";
import { LATENT_ATTENTION_SLOTS, LATENT_BLOCK_TOKENS, planLatentTiles } from "./contract.ts";
import { createReferenceLatentAttention } from "./reference.ts";
import { tiledAttentionBody } from "./x64-tiled.ts";

const thread = nativeThread(4 * 2 ** 20);
const { context } = thread;
const { memory } = context;
const UNITS = testedTiles(thread);

const [HEADS, LATENT, KEY] = [3, 64, 20];
const WIDTH = LATENT + KEY;
const CONTEXT = 300;
const NUM_BLOCKS = Math.ceil(CONTEXT / LATENT_BLOCK_TOKENS);
const [latents, keys, queries, tables, tiles, out] = [
  memory.reserve(NUM_BLOCKS * LATENT_BLOCK_TOKENS * LATENT * 2),
  memory.reserve(NUM_BLOCKS * LATENT_BLOCK_TOKENS * KEY * 4),
  memory.reserve(CONTEXT * HEADS * WIDTH * 4),
  memory.reserve(NUM_BLOCKS * 4),
  memory.reserve(2 ** 16),
  memory.reserve(CONTEXT * HEADS * LATENT * 4),
] as const;

function fillOperands(): void {
  const random = new Random(5, "latent attention over tiles");
  const rows = NUM_BLOCKS * LATENT_BLOCK_TOKENS;
  for (let at = 0; at < rows * LATENT; at++) memory.u16[latents / 2 + at] = toBf16(random.normal());
  for (let at = 0; at < rows * KEY; at++) memory.f32[keys / 4 + at] = random.normal();
  const count = CONTEXT * HEADS * WIDTH;
  for (let at = 0; at < count; at++) memory.f32[queries / 4 + at] = random.normal();
  for (let block = 0; block < NUM_BLOCKS; block++) {
    memory.i32[tables / 4 + block] = (block * 2 + 1) % NUM_BLOCKS;
  }
}

/** What `body` makes of `count` tokens from `position` on. */
function attend(
  body: ReturnType<typeof tiledAttentionBody>,
  position: number,
  count: number,
): Float32Array {
  const plan = planLatentTiles([{ firstToken: 0, count, position }], {
    numHeads: HEADS,
    numThreads: 1,
  });
  memory.i32.set(plan, tiles / 4);
  const values: Record<(typeof LATENT_ATTENTION_SLOTS)[number], number> = {
    numHeads: HEADS,
    latent: LATENT,
    key: KEY,
    scale: WIDTH ** -0.5,
    queryOffset: queries + position * HEADS * WIDTH * 4,
    queryRowStride: WIDTH,
    latentsOffset: latents,
    latentsRowStride: LATENT,
    keysOffset: keys,
    keysRowStride: KEY,
    tablesOffset: tables,
    tablesRowStride: NUM_BLOCKS,
    tilesOffset: tiles,
    outOffset: out,
    outRowStride: LATENT,
  };
  const slots = Float64Array.from(LATENT_ATTENTION_SLOTS, (name) => values[name]);
  const size = count * HEADS * LATENT;
  memory.f32.fill(Number.NaN, out / 4, out / 4 + size);
  body(slots, 0, plan.length / 4);
  return memory.f32.slice(out / 4, out / 4 + size);
}

for (const { name, refusal, unit } of UNITS) {
  describe(`latent attention over ${name}`, { skip: refusal || false }, () => {
    it("agrees with the reference at every edge of a block", () => {
      fillOperands();
      const body = tiledAttentionBody(context, unit);
      const expected = createReferenceLatentAttention("bf16", context);
      for (const [position, count] of [
        [0, 1],
        [15, 2],
        [62, 4],
        [127, 1],
        [128, 70],
        [0, CONTEXT],
      ] as const) {
        const tolerance = toleranceFor("attention", "f32", position + count);
        const problem = mismatch(
          attend(body, position, count),
          attend(expected, position, count),
          tolerance,
        );
        assert.equal(problem, undefined, `${count} tokens at ${position}`);
      }
    });

    it("gives a token the same bits alone, in any chunk, and beside what is no number", () => {
      fillOperands();
      const body = tiledAttentionBody(context, unit);
      const whole = attend(body, 0, CONTEXT);
      const rowLength = HEADS * LATENT;
      for (const [position, count] of [
        ...Array.from({ length: CONTEXT }, (_, at) => [at, 1] as const),
        [3, 61],
        [60, 9],
        [200, 100],
      ] as const) {
        const alone = attend(body, position, count);
        const beside = whole.subarray(position * rowLength, (position + count) * rowLength);
        assert.deepEqual(bitsOf(alone), bitsOf(beside), `${count} tokens at ${position}`);
      }
      // From the last block's fifth row on, which only the last tokens see.
      const spoiled = (NUM_BLOCKS - 1) * LATENT_BLOCK_TOKENS + 4;
      const block = memory.i32[tables / 4 + NUM_BLOCKS - 1]! * LATENT_BLOCK_TOKENS;
      memory.u16[latents / 2 + (block + 4) * LATENT] = 0x7fc0;
      const after = attend(body, 0, CONTEXT);
      const end = spoiled * rowLength;
      assert.deepEqual(bitsOf(after.subarray(0, end)), bitsOf(whole.subarray(0, end)));
      assert.ok(Number.isNaN(after[end]!), "the token that sees it");
    });
  });
}

function bitsOf(values: Float32Array): Int32Array {
  return new Int32Array(Float32Array.from(values).buffer);
}
