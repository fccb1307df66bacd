/** @file Blocks and the caches over them under random sharing: none is lost, none is used twice. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { Random } from "../base/random.ts";
import { openCpuDevice } from "../kernels/cpu.ts";
import { TINY } from "../model/test-support.ts";
import { Arena } from "../tensor/arena.ts";
import { LatentBlocks } from "./latent-blocks.ts";
import { LatentCache } from "./latent-cache.ts";

const SEED = 77;

test("random sequences that grow, share, shrink and end leave every block free", async () => {
  await using device = await openCpuDevice({ kernels: "reference", numThreads: 1 });
  const types = { config: TINY, computeType: "f32", floatType: "f32" } as const;
  const pool = new LatentBlocks(new Arena(device.memory, "blocks"), types, 40);
  const random = new Random(SEED);
  let caches: LatentCache[] = [];
  for (let step = 0; step < 2000; step++) {
    const cache = caches[random.below(Math.max(1, caches.length))];
    const choice = random.below(5);
    if (choice === 0 || cache === undefined) {
      caches.push(new LatentCache(pool));
    } else if (choice === 1) {
      cache.truncate(random.below(cache.length + 1));
    } else if (choice === 2) {
      cache.truncate(0);
      caches = caches.filter((each) => each !== cache);
    } else if (choice === 3) {
      const whole = cache.blocks.slice(0, Math.floor(cache.length / 64));
      for (const block of whole) pool.retain(block);
      const other = new LatentCache(pool);
      other.adopt(whole);
      other.truncate(random.below(other.length + 1));
      caches.push(other);
    } else {
      const count = random.below(200);
      const missing = cache.countMissing(count);
      const free = pool.numFree;
      const isDone = cache.reserve(count);
      assert.equal(isDone, missing <= free, `seed ${SEED}, step ${step}`);
      assert.equal(pool.numFree, isDone ? free - missing : free, `seed ${SEED}, step ${step}`);
      if (isDone) cache.advance(count);
      if (isDone && count > 0) {
        const last = cache.blocks[Math.floor((cache.length - 1) / 64)]!;
        assert.equal(pool.countReferences(last), 1, `seed ${SEED}, step ${step}: written, shared`);
      }
    }
    pool.checkIntegrity();
  }
  for (const cache of caches) cache.truncate(0);
  assert.equal(pool.numFree, 40);
});

test("a block's content survives being read and written", async () => {
  await using device = await openCpuDevice({ kernels: "reference", numThreads: 1 });
  const types = { config: TINY, computeType: "bf16", floatType: "f32" } as const;
  const pool = new LatentBlocks(new Arena(device.memory, "blocks"), types, 3);
  const [from, to] = [pool.allocate()!, pool.allocate()!];
  const random = new Random(SEED);
  const content = Uint8Array.from({ length: pool.blockBytes }, () => random.below(256));
  pool.write(from, content);
  pool.copy(from, to);
  assert.deepEqual(pool.read(to), content);
  pool.retain(to);
  assert.throws(() => pool.write(to, content), /shared/);
});
