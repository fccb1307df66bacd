/** @file A server of a fake engine on a port of the system's choice, and requests to it. */
import { request as httpRequest } from "node:http";
import { connect } from "node:net";
import { fileURLToPath } from "node:url";
import { Random } from "../base/random.ts";
import type { EngineRequest } from "../inference/engine/api.ts";
import type { Tokenizer } from "../tokenizer/tokenizer.ts";
import { readTokenizer } from "../training/run/checkpoint.ts";
import type { ChatFormat } from "./chat/conversation.ts";
import { deepseekFormat } from "./chat/deepseek-format.ts";
import { FakeEngine, type FakeOptions } from "./fake-engine.fixture.ts";
import { ModelRegistry } from "./models/registry.ts";
import { ApiServer, type LogEntry, type ServerOptions } from "./server.ts";

/** The trained checkpoint that tests share. */
export const TINY_CHAT: string = fileURLToPath(
  new URL("../../test/fixtures/tiny-chat", import.meta.url),
);

/** Its tokenizer. */
export function tinyTokenizer(): Tokenizer {
  return readTokenizer(TINY_CHAT);
}

export interface TestServer extends AsyncDisposable {
  readonly url: string;
  readonly port: number;
  readonly server: ApiServer;
  readonly engine: FakeEngine;
  readonly models: ModelRegistry;
  readonly log: LogEntry[];
}

export interface TestServerOptions
  extends Partial<Omit<ServerOptions, "models" | "log">>,
    Partial<Omit<FakeOptions, "says">> {
  readonly says?: string | ((request: EngineRequest) => string);
  readonly format?: (tokenizer: Tokenizer) => ChatFormat;
}

/** A server whose model "tiny" says what it is told to. */
export async function startTestServer(options: TestServerOptions = {}): Promise<TestServer> {
  const { says = "Hello, world.", format = deepseekFormat, ...rest } = options;
  const tokenizer = options.tokenizer ?? tinyTokenizer();
  const engine = new FakeEngine({
    ...rest,
    tokenizer,
    says: typeof says === "string" ? () => says : says,
  });
  const models = new ModelRegistry(
    {
      estimateBytes: () => 1000,
      availableBytes: () => 2 ** 30,
      open: async ({ id }) => ({ id, engine, format: format(tokenizer) }),
    },
    [{ id: "tiny", path: "nowhere" }],
    new Map([["claude*", "tiny"]]),
  );
  await models.load("tiny");
  const log: LogEntry[] = [];
  const server = await ApiServer.start({
    host: "127.0.0.1",
    port: 0,
    keys: [],
    requestsPerMinute: 0,
    allowedHosts: [],
    allowedOrigins: [],
    bodyBytesMax: 2 ** 20,
    ...rest,
    requestsMax: options.requestsMax ?? 64,
    models,
    log: (entry) => log.push(entry),
  });
  return {
    url: `http://127.0.0.1:${server.port}`,
    port: server.port,
    server,
    engine,
    models,
    log,
    async [Symbol.asyncDispose](): Promise<void> {
      await server.close();
      await models[Symbol.asyncDispose]();
    },
  };
}

export interface Reply {
  readonly status: number;
  readonly headers: Headers;
  readonly body: Record<string, unknown>;
}

/** POST a JSON value; what comes back must be JSON. */
export async function post(
  url: string,
  body: unknown,
  headers: Readonly<Record<string, string>> = {},
): Promise<Reply> {
  const response = await fetch(url, {
    method: "POST",
    headers: { "content-type": "application/json", ...headers },
    body: typeof body === "string" ? body : JSON.stringify(body),
  });
  const { status } = response;
  return { status, headers: response.headers, body: (await response.json()) as Reply["body"] };
}

/** The `error` of a reply in OpenAI's form. */
export function errorOf({ body }: Reply): Record<string, unknown> {
  return body["error"] as Record<string, unknown>;
}

/** The data of a stream's events, in order. */
export async function streamed(url: string, body: unknown): Promise<Record<string, unknown>[]> {
  const response = await fetch(url, {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify(body),
  });
  const text = await response.text();
  return text
    .split("\n")
    .filter((line) => line.startsWith("data: ") && line !== "data: [DONE]")
    .map((line) => JSON.parse(line.slice("data: ".length)) as Record<string, unknown>);
}

export interface RawRequest {
  readonly port: number;
  readonly method?: string;
  /** Sent as it is: `fetch` would tidy it. */
  readonly path: string;
  readonly headers?: Readonly<Record<string, string>>;
  readonly body?: string;
}

/** A request whose path and headers are sent as they are. */
export function raw({ port, method = "GET", path, headers = {}, body }: RawRequest): Promise<{
  readonly status: number;
  readonly headers: NodeJS.Dict<string | string[]>;
  readonly text: string;
}> {
  return new Promise((resolve, reject) => {
    const request = httpRequest({ host: "127.0.0.1", port, method, path, headers }, (response) => {
      let text = "";
      response.setEncoding("utf8");
      response.on("data", (part: string) => {
        text += part;
      });
      response.on("end", () =>
        resolve({ status: response.statusCode ?? 0, headers: response.headers, text }),
      );
    });
    request.on("error", reject);
    request.end(body);
  });
}

export interface Drops {
  readonly count: number;
  readonly atOnce: number;
  readonly seed: number;
  /** A connection is dropped after at most so long. */
  readonly waitMsMax: number;
}

/** Connections that send a request, whole or cut anywhere, and are dropped. */
export async function dropConnections(
  port: number,
  request: string,
  { count, atOnce, seed, waitMsMax }: Drops,
): Promise<void> {
  const random = new Random(seed, "drops");
  const drop = (): Promise<void> =>
    new Promise((resolve) => {
      const cut = random.below(3) === 0 ? random.below(request.length) : request.length;
      const waitMs = random.below(waitMsMax);
      const socket = connect(port, "127.0.0.1");
      socket.on("error", () => {});
      socket.on("close", () => resolve());
      socket.write(request.slice(0, cut));
      setTimeout(() => socket.destroy(), waitMs);
    });
  for (let done = 0; done < count; done += atOnce) {
    await Promise.all(Array.from({ length: atOnce }, drop));
  }
}

/** Timers and sockets that keep this process alive. */
export function heldResources(): number {
  const kinds = ["Timeout", "TCPSocketWrap"];
  return process.getActiveResourcesInfo().filter((kind) => kinds.includes(kind)).length;
}

/** Waits until something holds; fails by the test's own timeout if it never does. */
export async function until(holds: () => boolean): Promise<void> {
  while (!holds()) await new Promise((resolve) => setTimeout(resolve, 2));
}
