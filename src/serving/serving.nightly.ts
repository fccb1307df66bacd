/**
 * @file What takes minutes: ten thousand clients that drop their connections on a real engine.
 */
import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { LocalEngine } from "../inference/engine/local-engine.ts";
import { chatFormatOf } from "./models/loader.ts";
import { openEngineHere } from "./models/open-engine.ts";
import { ModelRegistry } from "./models/registry.ts";
import { ApiServer } from "./server.ts";
import { dropConnections, heldResources, raw, TINY_CHAT, until } from "./test-support.ts";

const MESSAGES = [{ role: "user", content: "Hello!" }];

interface OwnServer extends AsyncDisposable {
  readonly port: number;
  readonly server: ApiServer;
  readonly engine: LocalEngine;
}

/** Everything in this thread, so that nothing can hide. */
async function startOwnServer(): Promise<OwnServer> {
  const engine = await openEngineHere(TINY_CHAT, { HADAL_THREADS: "1" });
  assert.ok(engine instanceof LocalEngine);
  const open = async ({ id, path }: { id: string; path: string }) => {
    return { id, engine, format: chatFormatOf(path, engine.tokenizer) };
  };
  const models = new ModelRegistry(
    { estimateBytes: () => 1, availableBytes: () => 2, open },
    [{ id: "tiny", path: TINY_CHAT }],
    new Map(),
  );
  await models.load("tiny");
  const server = await ApiServer.start({
    ...{ host: "127.0.0.1", port: 0, models, keys: [], requestsPerMinute: 0, requestsMax: 64 },
    ...{ allowedHosts: [], allowedOrigins: [], bodyBytesMax: 2 ** 20, log: () => {} },
  });
  return {
    port: server.port,
    server,
    engine,
    async [Symbol.asyncDispose](): Promise<void> {
      await server.close();
      await models[Symbol.asyncDispose]();
    },
  };
}

describe("a real engine in this thread", () => {
  test("keeps no block, socket or timer of ten thousand clients that dropped", async () => {
    await using own = await startOwnServer();
    const { port, server, engine } = own;
    await raw({ port, path: "/health", headers: { connection: "close" } });
    const held = heldResources();
    const body = JSON.stringify({ model: "tiny", messages: MESSAGES, stream: true });
    const request =
      "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n" +
      `content-type: application/json\r\ncontent-length: ${body.length}\r\n\r\n${body}`;
    const before = process.memoryUsage().rss;
    await dropConnections(port, request, { count: 10_000, atOnce: 50, seed: 5, waitMsMax: 40 });
    const idle = [
      /num_requests_running\{[^}]*\} 0\n/,
      /num_requests_waiting\{[^}]*\} 0\n/,
      /http_request_body_bytes 0\n/,
      /http_connections_open 1\n/,
    ];
    // The last ones may reach the server after their clients have left.
    let text = "";
    while (!idle.every((line) => line.test(text))) {
      ({ text } = await raw({ port, path: "/metrics" }));
    }
    await until(() => server.numOpen === 0);
    await until(() => heldResources() <= held);
    // Every block is free or a cached prefix's.
    engine.checkIntegrity();
    assert.ok(process.memoryUsage().rss - before < 300 * 2 ** 20);
  });
});
