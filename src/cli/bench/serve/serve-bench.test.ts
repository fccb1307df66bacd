/** @file The load generator itself: what it asks, what it counts, what it shows. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { startTestServer, tinyTokenizer } from "../../../serving/test-support.ts";
import { CompletionClient } from "./completion-client.ts";
import { IdleEngine } from "./idle-engine.ts";
import { quantile, serveTable } from "./serve-row.ts";
import { measureThroughput } from "./throughput.ts";
import { Requests } from "./workloads.ts";

const VOCAB_SIZE = 1024;

test("requests are those of the seed and the client, within the vocabulary", () => {
  const take = (client: number, count = 50) => {
    const requests = new Requests("chat", VOCAB_SIZE, 7, client);
    return Array.from({ length: count }, () => requests.next());
  };
  assert.deepEqual(take(1), take(1));
  assert.notDeepEqual(take(1), take(2));
  const lengths = take(3, 2000).map(({ prompt }) => prompt.length);
  const mean = lengths.reduce((sum, length) => sum + length, 0) / lengths.length;
  assert.ok(mean > 120 && mean < 200, `mean ${mean}`);
  const tokens = take(4).flatMap(({ prompt }) => prompt);
  assert.ok(tokens.every((token) => token >= 256 && token < VOCAB_SIZE));
});

test("clients share four system prompts, and agents go on from what they asked before", () => {
  const system = [1, 2, 3].flatMap((client) => {
    const requests = new Requests("system", VOCAB_SIZE, 7, client);
    return Array.from({ length: 20 }, () => requests.next().prompt.slice(0, 512).join());
  });
  assert.equal(new Set(system).size, 4);
  const agent = new Requests("agent", VOCAB_SIZE, 7, 1);
  const turns = Array.from({ length: 7 }, () => agent.next().prompt);
  for (let turn = 1; turn < 6; turn++) {
    const [before, now] = [turns[turn - 1]!, turns[turn]!];
    assert.ok(now.length > before.length);
    assert.deepEqual(now.slice(0, before.length), before);
  }
  assert.notDeepEqual(turns[6]!.slice(0, 32), turns[0]!.slice(0, 32));
});

test("a stream's tokens are counted, each at its time, and the usage is the server's", async () => {
  await using server = await startTestServer({ says: "one two three 中文 four" });
  using client = new CompletionClient({ url: server.url, model: "tiny", eosId: 1 });
  const streamed = await client.stream({
    prompt: [300, 301],
    maxTokens: 100,
    seed: 3,
    reportsEveryToken: true,
  });
  const numTokens = tinyTokenizer().encode("one two three 中文 four").length;
  assert.equal(streamed.eventTimes.length, numTokens);
  assert.equal(streamed.completionTokens, numTokens + 1);
  const [request] = server.engine.requests;
  assert.deepEqual([...request!.prompt], [300, 301]);
  assert.deepEqual(request!.adjustments!.bias, [[1, -100]]);
  assert.deepEqual(await client.metrics(["http_request_body_bytes", "nothing"]), [0, 0]);
  const unknown = new CompletionClient({ url: server.url, model: "none", eosId: 1 });
  await assert.rejects(unknown.stream({ prompt: [1], maxTokens: 1, seed: 0 }), /refused: .*none/);
});

test("throughput has what came in its window, over one stream's speed", async () => {
  await using server = await startTestServer({ says: "word ".repeat(50) });
  using client = new CompletionClient({ url: server.url, model: "tiny", eosId: 1 });
  const load = { workload: "chat", streams: 3, vocabSize: 1024, seconds: 0.3, seed: 1 } as const;
  const row = await measureThroughput(client, load, 50);
  assert.ok(row.value! > 0);
  assert.equal(row.ratio, row.value! / 50);
  assert.equal(row.workload, "chat, 3 streams");
  server.engine.isClosed = true;
  await assert.rejects(measureThroughput(client, load, 50), /the engine is closed/);
});

test("the idle engine gives as many tokens as it is asked for", async () => {
  const engine = new IdleEngine(tinyTokenizer(), 4096);
  const request = { prompt: Int32Array.of(1, 2, 3), maxTokens: 9 };
  const kinds: string[] = [];
  for await (const { kind } of engine.generate(request as never, new AbortController().signal)) {
    kinds.push(kind);
  }
  assert.deepEqual(kinds, ["started", ...new Array(9).fill("tokens"), "finished"]);
});

test("a row that is not available says so and why", () => {
  const row = { name: "a", workload: "b", value: null, unit: "ms", note: "not yet" } as const;
  const [, line] = serveTable([row]);
  assert.deepEqual(line, ["a", "b", "not available", "", "", "", "not yet"]);
  assert.equal(quantile([3, 1, 2, 4], 0.5), 3);
  assert.equal(quantile([1], 0.95), 1);
});
