/** @file An engine in its own thread answers as one in this thread, and ends as asked. */
import assert from "node:assert/strict";
import { describe, test } from "node:test";
import type { Engine, EngineEvent, EngineRequest } from "../../inference/engine/api.ts";
import { latentBytesPerToken } from "../../inference/latent-blocks.ts";
import { readModelConfig } from "../../training/run/checkpoint.ts";
import { TINY_CHAT } from "../test-support.ts";
import { requestOf } from "./engine-request.fixture.ts";
import { modelLoader } from "./loader.ts";
import { latentCacheBytes, openEngine, openEngineHere } from "./open-engine.ts";

const ENV = { HADAL_THREADS: "1" };
const NEVER = new AbortController().signal;

async function collect(engine: Engine, request: EngineRequest, signal = NEVER) {
  const events: EngineEvent[] = [];
  for await (const event of engine.generate(request, signal)) {
    events.push(event.kind === "started" ? { ...event, queueMs: 0 } : event);
  }
  return events;
}

describe("an engine in its own thread", () => {
  test("gives what one in this thread gives, and refuses what that refuses", async () => {
    const [here, apart] = [await openEngineHere(TINY_CHAT, ENV), await openEngine(TINY_CHAT, ENV)];
    assert.deepEqual(apart.description, here.description);
    const request = requestOf(here, "The owl is green.", { maxTokens: 40 });
    assert.deepEqual(await collect(apart, request), await collect(here, request));
    const tokens = request.prompt;
    assert.deepEqual(await apart.embed(tokens, "", NEVER), await here.embed(tokens, "", NEVER));
    const names = (await apart.metrics()).map(({ name }) => name);
    assert.deepEqual(
      names,
      (await here.metrics()).map(({ name }) => name),
    );
    const refused = collect(apart, { ...request, prompt: Int32Array.of(1e6) });
    await assert.rejects(refused, { code: "inference.token" });
    await here.close();
    await apart.close();
  });

  test("shows that it lives with every launch of a step", async () => {
    let numLaunches = 0;
    const onLaunch = (): void => void numLaunches++;
    const engine = await openEngineHere(TINY_CHAT, ENV, { onLaunch });
    const before = numLaunches;
    await collect(engine, requestOf(engine, "The owl is green.", { maxTokens: 0 }));
    const { numLayers } = readModelConfig(TINY_CHAT);
    const inOneStep = numLaunches - before;
    assert.ok(inOneStep > 10 * numLayers, `${inOneStep} launches over ${numLayers} layers`);
    await engine.close();
  });

  test("takes the memory for latents that its estimate has", async () => {
    const engine = await openEngineHere(TINY_CHAT, ENV);
    const config = readModelConfig(TINY_CHAT);
    const perToken = latentBytesPerToken({ config, computeType: "bf16", floatType: "f32" });
    const estimated = latentCacheBytes(config);
    // Blocks are whole.
    assert.ok(Math.abs(engine.description.cacheTokens * perToken - estimated) < 64 * perToken);
    const estimate = modelLoader(openEngineHere as never).estimateBytes(TINY_CHAT);
    assert.ok(estimate > estimated, `${estimate}`);
    await engine.close();
  });

  test("of experts that processes share, counts its own as memory", () => {
    const estimateOf = (numProcesses: number, numRedundant: number): number => {
      const options = { numProcesses, numRedundant };
      return modelLoader(openEngineHere as never, options).estimateBytes(TINY_CHAT);
    };
    const { numRoutedExperts } = readModelConfig(TINY_CHAT);
    const ofExperts = estimateOf(1, numRoutedExperts) - estimateOf(1, 0);
    assert.ok(ofExperts > 0);
    assert.equal(estimateOf(2, 0), estimateOf(1, 0) - ofExperts / 2);
    assert.equal(estimateOf(2, numRoutedExperts), estimateOf(1, 0));
  });

  test("keeps weights in the format asked for, under a hash of their own", async () => {
    const settings = { prefixFolder: null, role: "both", weights: "int8" } as const;
    const coded = await openEngine(TINY_CHAT, ENV, settings);
    const plain = await openEngineHere(TINY_CHAT, ENV);
    assert.notEqual(coded.description.modelHash, plain.description.modelHash);
    const events = await collect(coded, requestOf(coded, "The owl is green.", { maxTokens: 40 }));
    assert.equal(events.at(-1)?.kind, "finished");
    const estimateOf = (weights?: string): number =>
      modelLoader(openEngineHere as never, { weights }).estimateBytes(TINY_CHAT);
    assert.ok(estimateOf("int8") < estimateOf() && estimateOf() < estimateOf("f32"));
    await coded.close();
    await plain.close();
  });

  test("drafts of a trained module stand, and change no token", async () => {
    const engine = await openEngineHere(TINY_CHAT, ENV);
    const request = requestOf(engine, "The owl is green. What colour", { maxTokens: 40 });
    const greedy = { ...request, sampling: { ...request.sampling, temperature: 0 } };
    const tokensOf = (events: readonly EngineEvent[]): number[] =>
      events.flatMap((event) => (event.kind === "tokens" ? event.tokens : []));
    const plain = await collect(engine, { ...greedy, maxTokens: 100 });
    const drafted = await collect(engine, { ...greedy, maxTokens: 100, draft: "auto" });
    assert.deepEqual(tokensOf(drafted), tokensOf(plain));
    const last = drafted.at(-1)!;
    assert.ok(last.kind === "finished" && last.usage.acceptedTokens > 10);
    await engine.close();
  });

  test("ends what runs when it is closed, and is closed for what comes after", async () => {
    const engine = await openEngine(TINY_CHAT, ENV);
    const request = requestOf(engine, "A", { maxTokens: 1500 });
    const controller = new AbortController();
    const aborted = collect(engine, request, controller.signal);
    const running = collect(engine, { ...request, seed: 4 });
    const isEnded = assert.rejects(running, { code: "engine.closed" });
    controller.abort();
    const last = (await aborted).at(-1)!;
    assert.ok(last.kind === "finished" && last.reason === "aborted");
    await engine.close();
    await isEnded;
    await assert.rejects(collect(engine, request), { code: "engine.closed" });
    await engine.close();
  });

  test("that cannot be opened says why", async () => {
    await assert.rejects(openEngine("/nowhere/at/all", ENV), { name: "OperationalError" });
  });
});
