/**
 * @file Prefixes on a disk: found by the engine that comes after, with the same tokens; damaged,
 * foreign and unwritable ones are misses, never wrong text.
 */
import assert from "node:assert/strict";
import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, test } from "node:test";
import { Random } from "../../base/random.ts";
import type { Engine, EngineEvent, EngineRequest } from "../../inference/engine/api.ts";
import { TINY_CHAT } from "../test-support.ts";
import type { PrefixFolder } from "./engine-origin.ts";
import { openEngineHere } from "./open-engine.ts";

const NEVER = new AbortController().signal;
const ENV = { HADAL_THREADS: "1" };
const SEED = 11;
const PROMPT_BLOCKS = 4;

const folders: string[] = [];
function prefixFolder(): PrefixFolder {
  const folder = mkdtempSync(join(tmpdir(), "hadal-prefixes-"));
  folders.push(folder);
  return { folder, bytesMax: 2 ** 28 };
}
after(() => {
  for (const folder of folders) rmSync(folder, { recursive: true });
});

const random = new Random(SEED);
const REQUEST: EngineRequest = {
  // The last block is whole, but its last token has to be read for its logits.
  prompt: Int32Array.from({ length: PROMPT_BLOCKS * 64 + 1 }, () => 20 + random.below(900)),
  maxTokens: 30,
  sampling: { temperature: 0.9, topK: 0, topP: 1, minP: 0 },
  adjustments: null,
  seed: 5,
  stopStrings: [],
  endTokens: [],
  topLogProbabilities: 2,
  promptLogProbabilities: false,
  constraint: null,
  tenant: "alice",
  deadlineMs: null,
  draft: "auto",
};

interface Answer {
  readonly cachedTokens: number;
  readonly said: readonly unknown[];
}

async function ask(engine: Engine, request: EngineRequest = REQUEST): Promise<Answer> {
  const events: EngineEvent[] = [];
  for await (const event of engine.generate(request, NEVER)) events.push(event);
  const tokens = events.flatMap((event) => (event.kind === "tokens" ? [event] : []));
  const last = events.at(-1)!;
  assert.ok(last.kind === "finished");
  const said = tokens.flatMap((event) => event.logProbabilities ?? []);
  return { cachedTokens: last.usage.cachedTokens, said };
}

async function countOf(engine: Engine, name: string): Promise<number> {
  const metric = (await engine.metrics()).find((each) => each.name === name);
  assert.ok(metric !== undefined && metric.kind !== "histogram", name);
  return metric.value;
}

/** Ask an engine of its own; what it has to store is on the disk when this ends. */
async function askAnew(
  given: PrefixFolder,
  request: EngineRequest = REQUEST,
  counts: readonly string[] = [],
): Promise<Answer & { readonly counted: readonly number[] }> {
  const engine = await openEngineHere(TINY_CHAT, ENV, { prefixFolder: given });
  const answer = await ask(engine, request);
  const counted: number[] = [];
  for (const name of counts) counted.push(await countOf(engine, name));
  await engine.close();
  return { ...answer, counted };
}

function blockFiles({ folder }: PrefixFolder): string[] {
  const names = readdirSync(folder, { recursive: true, encoding: "utf8" });
  return names.filter((name) => /[0-9a-f]{32}$/.test(name) && name.length > 33).sort();
}

/** What the model says without a disk, every asker for themselves: nothing is shared. */
let expected: (request: EngineRequest) => Answer;
const SHIFTED = Array.from({ length: 8 }, (_, index) => ({
  ...REQUEST,
  prompt: Int32Array.from([...REQUEST.prompt.slice(0, 64 * (index % 4)), ...REQUEST.prompt]),
  seed: index,
}));
before(async () => {
  const engine = await openEngineHere(TINY_CHAT, ENV);
  const answers = new Map<EngineRequest, Answer>();
  for (const [index, request] of [REQUEST, ...SHIFTED].entries()) {
    answers.set(request, await ask(engine, { ...request, tenant: `${index}` }));
  }
  await engine.close();
  expected = (request) => answers.get(request)!;
});

test("a prompt read before a restart is found after it, with the same tokens", async () => {
  const given = prefixFolder();
  const cold = await askAnew(given);
  assert.equal(cold.cachedTokens, 0);
  const warm = await askAnew(given, REQUEST, [
    "prefix_cache_disk_queries_total",
    "prefix_cache_disk_hits_total",
    "prefix_cache_hits_total",
  ]);
  assert.equal(warm.cachedTokens, PROMPT_BLOCKS * 64);
  assert.deepEqual(warm.counted, [256, 256, 256]);
  for (const { said } of [cold, warm]) assert.deepEqual(said, expected(REQUEST).said);
});

test("what somebody else asked is not found", async () => {
  const given = prefixFolder();
  await askAnew(given);
  const other = await askAnew(given, { ...REQUEST, tenant: "bob" }, [
    "prefix_cache_disk_hits_total",
  ]);
  assert.deepEqual([other.cachedTokens, other.counted], [0, [0]]);
});

test("a damaged block is a miss from there on, is counted and is stored anew", async () => {
  const given = prefixFolder();
  await askAnew(given);
  const victim = blockFiles(given).find((name) => {
    // The block's index in its sequence.
    return readFileSync(join(given.folder, name)).readUInt32LE(12) === 2;
  })!;
  const path = join(given.folder, victim);
  const bytes = readFileSync(path);
  bytes[bytes.length >> 1]! ^= 1;
  writeFileSync(path, bytes);
  const names = ["prefix_cache_disk_corrupt_blocks_total", "prefix_cache_disk_hits_total"];
  const damaged = await askAnew(given, REQUEST, names);
  assert.equal(damaged.cachedTokens, 128);
  assert.deepEqual(damaged.counted, [1, 128]);
  assert.deepEqual(damaged.said, expected(REQUEST).said);
  const healed = await askAnew(given);
  assert.deepEqual([healed.cachedTokens, healed.said], [256, expected(REQUEST).said]);
});

test("a folder that cannot be written costs nothing but the hits", async () => {
  const given = prefixFolder();
  // A file where the folder should be.
  const folder = join(given.folder, "file");
  writeFileSync(folder, "");
  const names = ["prefix_cache_disk_failed_writes_total", "prefix_cache_disk_up"];
  const engine = await openEngineHere(TINY_CHAT, ENV, { prefixFolder: { ...given, folder } });
  const { said } = await ask(engine);
  assert.deepEqual(said, expected(REQUEST).said);
  await engine.close();
  assert.equal(await countOf(engine, names[0]!), 1);
});

test("many who ask at once get what each gets alone, whatever the disk has by then", async () => {
  const given = prefixFolder();
  for (const _ of ["cold", "warm"]) {
    const engine = await openEngineHere(TINY_CHAT, ENV, { prefixFolder: given });
    const answers = await Promise.all(SHIFTED.map((request) => ask(engine, request)));
    answers.forEach(({ said }, index) => {
      assert.deepEqual(said, expected(SHIFTED[index]!).said, `seed ${SEED}, request ${index}`);
    });
    await engine.close();
  }
});
