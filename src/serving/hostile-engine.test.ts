/**
 * @file Hostile requests against a real engine, over HTTP: nobody else's answer changes, no bomb
 * outlives its request, and an engine that dies is opened again.
 */
import assert from "node:assert/strict";
import { after, before, describe, test } from "node:test";
import { Worker } from "node:worker_threads";
import { siblingModule } from "../base/modules.ts";
import { openRemoteEngine } from "../inference/engine/thread/remote-engine.ts";
import type { EngineOrigin } from "./models/engine-origin.ts";
import { chatFormatOf } from "./models/loader.ts";
import { ModelRegistry } from "./models/registry.ts";
import { ApiServer } from "./server.ts";
import { errorOf, post, raw, streamed, TINY_CHAT, tinyTokenizer, until } from "./test-support.ts";

interface RealServer extends AsyncDisposable {
  readonly url: string;
  readonly port: number;
  readonly models: ModelRegistry;
  /** Threads of engines, in the order they were started. */
  readonly threads: readonly Worker[];
}

/** The trained checkpoint behind a server of this process, its engine in a thread at hand. */
async function startRealServer(): Promise<RealServer> {
  const tokenizer = tinyTokenizer();
  const threads: Worker[] = [];
  const models = new ModelRegistry(
    {
      estimateBytes: () => 1,
      availableBytes: () => 2,
      open: async ({ id, path }) => {
        const env = { HADAL_THREADS: "1" };
        const workerData: EngineOrigin = { path, env, prefixFolder: null, port: null };
        const worker = new Worker(siblingModule("./models/engine-thread", import.meta.url), {
          workerData,
        });
        threads.push(worker);
        const engine = await openRemoteEngine(worker, tokenizer);
        return { id, engine, format: chatFormatOf(path, tokenizer) };
      },
    },
    [{ id: "tiny", path: TINY_CHAT }],
    new Map(),
  );
  await models.load("tiny");
  const server = await ApiServer.start({
    ...{ host: "127.0.0.1", port: 0, models, keys: [], requestsPerMinute: 0, requestsMax: 64 },
    ...{ allowedHosts: [], allowedOrigins: [], bodyBytesMax: 2 ** 22, log: () => {} },
  });
  return {
    url: `http://127.0.0.1:${server.port}`,
    port: server.port,
    models,
    threads,
    async [Symbol.asyncDispose](): Promise<void> {
      await server.close();
      await models[Symbol.asyncDispose]();
    },
  };
}

const VICTIM = {
  model: "tiny",
  messages: [{ role: "user", content: "The owl is green. What colour is the owl?" }],
  seed: 4,
  max_tokens: 40,
  logprobs: true,
  top_logprobs: 3,
};

describe("a real engine", () => {
  let server: RealServer;
  before(async () => {
    server = await startRealServer();
  });
  after(async () => await server[Symbol.asyncDispose]());

  const victim = async (): Promise<unknown> => {
    const reply = await post(`${server.url}/v1/chat/completions`, VICTIM);
    assert.equal(reply.status, 200);
    return reply.body["choices"];
  };

  test("gives the same answer beside tokens that are none and extreme biases", async () => {
    const alone = await victim();
    const url = `${server.url}/v1/completions`;
    const { vocabSize } = tinyTokenizer();
    const everyToken = Object.fromEntries(
      Array.from({ length: vocabSize }, (_, token) => [token, token % 2 === 0 ? 100 : -100]),
    );
    const hostile = [
      { prompt: [vocabSize] },
      { prompt: [-1] },
      { prompt: [2 ** 31] },
      { prompt: [[5, 6], [vocabSize + 7]] },
      { prompt: "x", logit_bias: { [vocabSize]: 100 } },
      { prompt: "x", logit_bias: { "-1": 100 } },
      { prompt: "x", logit_bias: everyToken, max_tokens: 20, logprobs: 20 },
      { prompt: "The owl is green.", presence_penalty: 2, frequency_penalty: -2, max_tokens: 20 },
    ];
    for (let round = 0; round < 3; round++) {
      const others = hostile.map((fields) => post(url, { model: "tiny", ...fields }));
      const [beside, ...replies] = await Promise.all([victim(), ...others]);
      assert.deepEqual(beside, alone);
      assert.deepEqual(
        replies.map((reply) => (reply as Awaited<ReturnType<typeof post>>).status),
        [400, 400, 400, 400, 400, 400, 200, 200],
      );
    }
  });

  test("outlives every schema and pattern, each refused by its field or honoured", async () => {
    let nested: unknown = { type: "string" };
    for (let depth = 0; depth < 25; depth++) nested = { type: "array", items: nested };
    const properties = Object.fromEntries(
      Array.from({ length: 2000 }, (_, index) => [`field${index}`, { type: "string" }]),
    );
    const schemas: Readonly<Record<string, unknown>> = {
      recursive: { $ref: "#" },
      "mutually recursive": {
        $ref: "#/$defs/a",
        $defs: { a: { $ref: "#/$defs/b" }, b: { $ref: "#/$defs/a" } },
      },
      "recursive twice": {
        type: "object",
        properties: { a: { $ref: "#" }, b: { $ref: "#" } },
        required: ["a", "b"],
        additionalProperties: false,
      },
      "ten thousand words": { enum: Array.from({ length: 10_000 }, (_, index) => `word ${index}`) },
      "a billion entries": { type: "array", items: { type: "string" }, minItems: 1e9 },
      "a billion characters": { type: "string", minLength: 1e9 },
      "an exploding pattern": { type: "string", pattern: "^(a+)+b$" },
      "an exploding count": { type: "string", pattern: "^((a{1,999}){1,999}){1,999}$" },
      "a pattern that is none": { type: "string", pattern: "(((((" },
      "nested lists": nested,
      "two thousand fields": { type: "object", properties, additionalProperties: false },
      "no schema": 7,
    };
    for (const [name, schema] of Object.entries(schemas)) {
      const reply = await post(`${server.url}/v1/chat/completions`, {
        model: "tiny",
        messages: VICTIM.messages,
        max_tokens: 8,
        response_format: { type: "json_schema", json_schema: { name: "x", schema } },
      });
      assert.ok([200, 400].includes(reply.status), `${name}: ${JSON.stringify(reply.body)}`);
      if (reply.status === 400) assert.equal(errorOf(reply)["param"], "response_format", name);
    }
    const many = Array.from({ length: 12 }, async (_, index) => {
      const format = { type: "json_schema", json_schema: { name: "x", schema: { const: index } } };
      const fields = { messages: VICTIM.messages, max_tokens: 8, response_format: format };
      const { status, body } = await post(`${server.url}/v1/chat/completions`, {
        model: "tiny",
        ...fields,
      });
      assert.equal(status, 200);
      return (body["choices"] as { message: { content: string } }[])[0]!.message.content;
    });
    assert.deepEqual((await Promise.all(many)).map(Number), [...many.keys()]);
    const forced = await post(`${server.url}/v1/chat/completions`, {
      model: "tiny",
      messages: VICTIM.messages,
      tools: [{ type: "function", function: { name: "f", parameters: { $ref: "#" } } }],
      tool_choice: "required",
    });
    assert.deepEqual([forced.status, errorOf(forced)["param"]], [400, "tools"]);
    assert.ok(await victim());
  });

  test("that dies is opened again: what ran is told, what comes waits or is answered", async () => {
    const { threads } = server;
    const dying = streamed(`${server.url}/v1/chat/completions`, {
      ...VICTIM,
      ...{ stream: true, max_tokens: 1500, logit_bias: { 1: -100 }, logprobs: false },
      top_logprobs: 0,
    });
    const waiting = post(`${server.url}/v1/completions`, {
      model: "tiny",
      prompt: "x",
      max_tokens: 1500,
      logit_bias: { 1: -100 },
    });
    const running = async (): Promise<boolean> => {
      const { text } = await raw({ port: server.port, path: "/metrics" });
      return text.includes('hadal_num_requests_running{model_name="tiny"} 2');
    };
    while (!(await running()));
    const alone = threads.length;
    await threads.at(-1)!.terminate();
    const last = (await dying).at(-1)!;
    assert.equal((last["error"] as Record<string, unknown>)["code"], "engine_closed");
    const refused = await waiting;
    assert.deepEqual([refused.status, errorOf(refused)["code"]], [503, "engine_closed"]);
    assert.ok(Number(refused.headers.get("retry-after")) >= 1);
    await until(() => threads.length === alone + 1);
    let reply = await post(`${server.url}/v1/chat/completions`, VICTIM);
    while (reply.status === 503) reply = await post(`${server.url}/v1/chat/completions`, VICTIM);
    assert.equal(reply.status, 200);
    assert.equal((await raw({ port: server.port, path: "/ready" })).status, 200);
    const { text } = await raw({ port: server.port, path: "/metrics" });
    assert.match(text, /hadal_engine_deaths_total\{model_name="tiny"\} 1\n/);
  });
});
