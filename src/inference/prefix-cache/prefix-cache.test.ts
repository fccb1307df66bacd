/** @file The prefix cache against a plain list of blocks, over random workloads. */
import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { Random } from "../../base/random.ts";
import { BLOCK_TOKENS, type BlockReferences } from "./latent-block.ts";
import { PrefixCache } from "./prefix-cache.ts";

/** Counts references; hands out ids that were never used before. */
class CountingPool implements BlockReferences {
  readonly references = new Map<number, number>();
  #next = 0;

  allocate(count: number): number[] {
    return Array.from({ length: count }, () => {
      this.references.set(this.#next, 1);
      return this.#next++;
    });
  }

  retain(blockId: number): void {
    const references = this.references.get(blockId);
    assert.ok(references !== undefined, `retained block ${blockId}, which is free`);
    this.references.set(blockId, references + 1);
  }

  release(blockId: number): void {
    const references = this.references.get(blockId);
    assert.ok(references !== undefined, `released block ${blockId}, which is free`);
    if (references === 1) this.references.delete(blockId);
    else this.references.set(blockId, references - 1);
  }

  countReferences(blockId: number): number {
    return this.references.get(blockId) ?? 0;
  }
}

/** Tokens of whole blocks named by letters, and `extra` more tokens. */
function spell(letters: string, extra = 0): Int32Array {
  const tokens = [...letters].flatMap((letter) =>
    Array.from({ length: BLOCK_TOKENS }, (_, i) => (i === 20 ? letter.codePointAt(0)! : i)),
  );
  for (let i = 0; i < extra; i++) tokens.push(i);
  return Int32Array.from(tokens);
}

function insert(cache: PrefixCache, pool: CountingPool, letters: string, salt = ""): number[] {
  const own = pool.allocate(letters.length);
  const cached = cache.insert(salt, spell(letters), own);
  for (const blockId of own) pool.release(blockId);
  return [...cached];
}

describe("the prefix cache", () => {
  it("finds the longest prefix in whole blocks, at block boundaries -1, 0 and +1", () => {
    const pool = new CountingPool();
    const cache = new PrefixCache(pool);
    const blockIds = insert(cache, pool, "abc");
    for (const numBlocks of [1, 2, 3]) {
      for (const offset of [-1, 0, 1]) {
        const tokens = spell("abcd").subarray(0, numBlocks * BLOCK_TOKENS + offset);
        const expected = blockIds.slice(0, offset < 0 ? numBlocks - 1 : numBlocks);
        assert.deepEqual(cache.match("", tokens).blockIds, expected);
        cache.checkIntegrity();
      }
    }
    assert.deepEqual(cache.match("", new Int32Array(0)).blockIds, []);
  });

  it("names the first differing token of a near miss, wherever it lies", () => {
    const pool = new CountingPool();
    const cache = new PrefixCache(pool);
    insert(cache, pool, "abc");
    insert(cache, pool, "adc");
    const [b, c, x] = ["b", "c", "x"].map((letter) => letter.codePointAt(0)!);
    const divergence = (letters: string, salt = "") => cache.match(salt, spell(letters)).divergence;
    const at = (block: number) => block * BLOCK_TOKENS + 20;
    const differs = (block: number, cachedToken: number | undefined) => ({
      position: at(block),
      cachedToken,
      givenToken: x,
    });
    assert.deepEqual(divergence("xbc"), differs(0, "a".codePointAt(0)));
    assert.deepEqual(divergence("abx"), differs(2, c));
    assert.deepEqual(divergence("axc")?.position, at(1));
    assert.ok([b, "d".codePointAt(0)].includes(divergence("axc")?.cachedToken));
    assert.equal(divergence("abc"), null);
    assert.equal(divergence("ab"), null);
    assert.equal(divergence("abcx"), null);
    assert.equal(divergence("xbc", "another salt"), null);
    // The end of a prompt inside a block is not a difference.
    assert.equal(cache.match("", spell("abc").subarray(0, at(1))).divergence, null);
  });

  it("chooses the neighbour with most in common for the near miss", () => {
    const pool = new CountingPool();
    const cache = new PrefixCache(pool);
    const random = new Random(5);
    for (let round = 0; round < 200; round++) {
      const draw = () => Int32Array.from({ length: BLOCK_TOKENS }, () => random.below(2));
      const blocks = Array.from({ length: 1 + random.below(12) }, draw);
      cache.clear();
      for (const block of blocks) cache.insert("", block, pool.allocate(1));
      const wanted = draw();
      const most = Math.max(
        ...blocks.map((block) => {
          const first = block.findIndex((token, i) => token !== wanted[i]);
          return first < 0 ? BLOCK_TOKENS : first;
        }),
      );
      const { divergence } = cache.match("", wanted);
      assert.equal(divergence === null ? BLOCK_TOKENS : divergence.position, most);
    }
  });

  it("shares nothing between salts", () => {
    const pool = new CountingPool();
    const cache = new PrefixCache(pool);
    insert(cache, pool, "ab", "alice");
    assert.equal(cache.match("bob", spell("ab")).numTokens, 0);
    const bobs = insert(cache, pool, "ab", "bob");
    assert.deepEqual(cache.match("bob", spell("abc")).blockIds, bobs);
    assert.equal(cache.numBlocks, 4);
  });

  it("keeps the blocks it has and says which these are", () => {
    const pool = new CountingPool();
    const cache = new PrefixCache(pool);
    const first = insert(cache, pool, "ab");
    const own = pool.allocate(3);
    assert.deepEqual(cache.insert("", spell("abc", 7), own), [...first, own[2]]);
    assert.equal(pool.countReferences(own[0]!), 1);
    assert.equal(pool.countReferences(own[2]!), 2);
  });

  it("evicts nothing that a sequence refers to", () => {
    const pool = new CountingPool();
    const cache = new PrefixCache(pool);
    insert(cache, pool, "abc");
    insert(cache, pool, "ade");
    const held = cache.match("", spell("ab"));
    assert.equal(cache.evict(100), 3);
    assert.deepEqual(cache.match("", spell("abc")).blockIds, held.blockIds);
    cache.checkIntegrity();
    for (const blockId of [...held.blockIds, ...held.blockIds]) pool.release(blockId);
    assert.equal(cache.evict(100), 2);
    assert.equal(pool.references.size, 0);
    cache.checkIntegrity();
  });

  it("counts queries, tokens and the three kinds of result", () => {
    const pool = new CountingPool();
    const cache = new PrefixCache(pool);
    insert(cache, pool, "ab");
    cache.match("", spell("abc"));
    cache.match("", spell("ab", 9));
    cache.match("", spell("x"));
    assert.deepEqual(cache.counts, {
      queries: 3,
      queriedTokens: 6 * 64 + 9,
      hitTokens: 4 * 64,
      misses: 1,
      partialHits: 1,
      fullHits: 1,
      insertedBlocks: 2,
      evictedBlocks: 0,
    });
  });

  it("does the same as a list of blocks searched in full", () => {
    for (const seed of [11, 12, 13, 14, 15, 16]) runWorkload(seed, 700);
  });

  it("takes ten thousand sequences that differ in their last token alone", () => {
    const pool = new CountingPool();
    const cache = new PrefixCache(pool);
    const tokens = new Int32Array(BLOCK_TOKENS);
    for (let i = 0; i < 10_000; i++) {
      tokens[BLOCK_TOKENS - 1] = Math.imul(i, 40_503) >>> 0;
      const [own] = pool.allocate(1);
      cache.insert("", tokens, [own!]);
      pool.release(own!);
    }
    assert.equal(cache.numBlocks, 10_000);
    assert.equal(cache.evict(9_999), 9_999);
    assert.equal(cache.match("", tokens).numTokens, BLOCK_TOKENS);
  });
});

/** One cached block of the model: its path of letters, salt first, and its last use. */
interface ModelBlock {
  readonly blockId: number;
  lastUse: number;
}

/** Compare the cache with a map from paths to blocks. */
function runWorkload(seed: number, numSteps: number): void {
  const random = new Random(seed);
  const pool = new CountingPool();
  const cache = new PrefixCache(pool);
  const model = new Map<string, ModelBlock>();
  const running: (readonly number[])[] = [];
  const draw = () => {
    const length = random.below(6);
    const letters = Array.from({ length }, () => "abc"[random.below(3)]).join("");
    return { letters, salt: "01"[random.below(2)]! };
  };
  const prefixes = (salt: string, letters: string) =>
    Array.from(letters, (_, i) => salt + letters.slice(0, i + 1));
  const isLeaf = (path: string) => ![..."abc"].some((letter) => model.has(path + letter));
  for (let step = 1; step <= numSteps; step++) {
    const where = `seed ${seed}, step ${step}`;
    const { letters, salt } = draw();
    const kind = random.below(10);
    if (kind < 4) {
      const found = prefixes(salt, letters).filter((path) => model.has(path));
      const match = cache.match(salt, spell(letters, random.below(BLOCK_TOKENS)));
      assert.deepEqual(
        match.blockIds,
        found.map((path) => model.get(path)!.blockId),
        where,
      );
      for (const path of found) model.get(path)!.lastUse = step;
      running.push(match.blockIds);
    } else if (kind < 7) {
      const own = pool.allocate(letters.length);
      const cached = cache.insert(salt, spell(letters, random.below(BLOCK_TOKENS)), own);
      for (const [i, path] of prefixes(salt, letters).entries()) {
        const block = model.get(path);
        if (block === undefined) model.set(path, { blockId: own[i]!, lastUse: step });
        else block.lastUse = step;
      }
      const expected = prefixes(salt, letters).map((path) => model.get(path)!.blockId);
      assert.deepEqual(cached, expected, where);
      running.push(own);
    } else if (kind < 9) {
      const [blockIds] = running.splice(random.below(running.length + 1), 1);
      for (const blockId of blockIds ?? []) pool.release(blockId);
    } else {
      for (let left = random.below(4); left > 0; left--) {
        const free = [...model].filter(
          ([path, { blockId }]) => isLeaf(path) && pool.countReferences(blockId) === 1,
        );
        const before = new Set(pool.references.keys());
        assert.equal(cache.evict(1), Math.min(1, free.length), where);
        if (free.length === 0) break;
        const oldest = Math.min(...free.map(([, block]) => block.lastUse));
        const [victim] = free.filter(([, { blockId }]) => !pool.references.has(blockId));
        assert.equal(before.size - pool.references.size, 1, where);
        assert.equal(victim?.[1].lastUse, oldest, where);
        model.delete(victim![0]);
      }
    }
    assert.equal(cache.numBlocks, model.size, where);
    cache.checkIntegrity();
  }
  for (const blockId of running.flat()) pool.release(blockId);
  assert.equal(pool.references.size, model.size, "blocks leak");
  assert.equal(cache.evict(1e6), model.size);
  assert.equal(pool.references.size, 0);
}
