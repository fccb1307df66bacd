/** @file A server process of the idle engine: `idle-server.ts CHECKPOINT`, for its tokenizer. */
import { once } from "node:events";
import { defined } from "../../../base/errors.ts";
import { deepseekFormat } from "../../../serving/chat/deepseek-format.ts";
import { ModelRegistry } from "../../../serving/models/registry.ts";
import { ApiServer } from "../../../serving/server.ts";
import { readTokenizer } from "../../../training/run/checkpoint.ts";
import { IdleEngine } from "./idle-engine.ts";

/** Room for the longest stream that is measured. */
const CONTEXT_TOKENS = 2 ** 20;

const path = defined(process.argv[2], "the checkpoint");
const tokenizer = readTokenizer(path);
const engine = new IdleEngine(tokenizer, CONTEXT_TOKENS);
await using models = new ModelRegistry(
  {
    estimateBytes: () => 0,
    availableBytes: () => Infinity,
    open: async ({ id }) => ({ id, engine, format: deepseekFormat(tokenizer) }),
  },
  [{ id: "idle", path }],
  new Map(),
);
await models.load("idle");
await using server = await ApiServer.start({
  host: "127.0.0.1",
  port: 0,
  models,
  keys: [],
  requestsPerMinute: 0,
  requestsMax: 64,
  allowedHosts: [],
  allowedOrigins: [],
  bodyBytesMax: 2 ** 20,
  log: () => {},
});
process.stdout.write(`http://127.0.0.1:${server.port}\n`);
await once(process, "SIGTERM");
