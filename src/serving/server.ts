/**
 * @file The HTTP server: every request through the same gates, in the same order.
 *
 *     id → Host and Origin → route → key → rate → draining? → handler → metrics and log
 *
 * Node's own `http` does the protocol; its limits on headers, their time and idle sockets are set
 * here. A client that leaves aborts its work. `drain` takes no more requests and waits for those
 * that run; `close` ends them.
 */
import { randomUUID } from "node:crypto";
import { createServer, type IncomingMessage, type Server, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import { OperationalError } from "../base/errors.ts";
import { type Failure, failureOf, INTERNAL_FAILURE } from "./failure.ts";
import { type Dialect, Exchange } from "./http/exchange.ts";
import { checkSource, corsHeaders, type GuardOptions, preflightHeaders } from "./http/guard.ts";
import { type ApiKey, authenticate } from "./http/keys.ts";
import { RateLimit } from "./http/rate-limit.ts";
import { Metrics } from "./metrics.ts";
import type { ModelRegistry } from "./models/registry.ts";
import { anthropicError } from "./protocols/anthropic-error.ts";
import { openAiError } from "./protocols/openai-error.ts";
import { type Match, ROUTES, Router } from "./routes.ts";
import type { Route, Service } from "./service.ts";

/** What is written of each request: never its content, never a key. */
export interface LogEntry {
  readonly id: string;
  readonly method: string;
  /** The route's own path, not the client's. */
  readonly route: string;
  readonly status: number;
  readonly caller: string;
  readonly milliseconds: number;
  /** The code of a refusal, whose message may quote what the client sent; a stack of our bugs. */
  readonly error?: string;
}

export interface ServerOptions extends GuardOptions {
  readonly port: number;
  readonly models: ModelRegistry;
  readonly keys: readonly ApiKey[];
  /** Requests a minute for each key; 0 for no limit. */
  readonly requestsPerMinute: number;
  /** Requests that may run or wait at once. */
  readonly requestsMax: number;
  readonly bodyBytesMax: number;
  readonly log: (entry: LogEntry) => void;
  readonly limits?: Partial<HttpLimits>;
}

/** Times in milliseconds; by feel, wide for people and narrow for those who hold sockets. */
export interface HttpLimits {
  readonly headersMs: number;
  /** For the whole request to arrive. */
  readonly requestMs: number;
  readonly keepAliveMs: number;
  /** Between comments of a silent stream. */
  readonly commentMs: number;
  /** How long a client may not read. */
  readonly stallMs: number;
  readonly connectionsMax: number;
  readonly depthMax: number;
}

const HTTP_LIMITS: HttpLimits = {
  headersMs: 10_000,
  requestMs: 60_000,
  keepAliveMs: 5000,
  commentMs: 10_000,
  stallMs: 30_000,
  connectionsMax: 2048,
  depthMax: 64,
};
const HEADER_BYTES_MAX = 16 * 1024;

export class ApiServer implements AsyncDisposable {
  readonly #options: ServerOptions;
  readonly #limits: HttpLimits;
  readonly #server: Server;
  readonly #router = new Router(ROUTES);
  readonly #rate: RateLimit;
  readonly #service: Service;
  readonly #ending = new AbortController();
  #running = 0;
  #isDraining = false;
  #onIdle: (() => void) | undefined;

  private constructor(options: ServerOptions) {
    this.#options = options;
    this.#limits = { ...HTTP_LIMITS, ...options.limits };
    this.#rate = new RateLimit(options.requestsPerMinute, () => performance.now());
    const metrics = new Metrics();
    const now = (): number => Math.floor(Date.now() / 1000);
    const isDraining = (): boolean => this.#isDraining;
    this.#service = { models: options.models, metrics, startedAt: now(), now, isDraining };
    this.#server = createServer(
      {
        headersTimeout: this.#limits.headersMs,
        requestTimeout: this.#limits.requestMs,
        keepAliveTimeout: this.#limits.keepAliveMs,
        connectionsCheckingInterval: Math.min(1000, this.#limits.headersMs),
        maxHeaderSize: HEADER_BYTES_MAX,
        requireHostHeader: true,
      },
      (request, response) => void this.#serve(request, response),
    );
    this.#server.maxConnections = this.#limits.connectionsMax;
  }

  /** Listens before it returns. */
  static async start(options: ServerOptions): Promise<ApiServer> {
    const server = new ApiServer(options);
    await server.#listen();
    return server;
  }

  get port(): number {
    return (this.#server.address() as AddressInfo).port;
  }

  /** Requests being answered now. */
  get numRunning(): number {
    return this.#running;
  }

  #listen(): Promise<void> {
    const { host, port } = this.#options;
    return new Promise((resolve, reject) => {
      this.#server.once("error", (cause) => {
        const reason = cause instanceof Error ? cause.message : String(cause);
        const problem = `cannot listen on ${host} port ${port}: ${reason}; choose another --port`;
        reject(new OperationalError("serving.listen", problem, {}, cause));
      });
      this.#server.listen(port, host, () => resolve());
    });
  }

  async #serve(request: IncomingMessage, response: ServerResponse): Promise<void> {
    const started = performance.now();
    const id = randomUUID().replaceAll("-", "");
    const gone = new AbortController();
    response.on("close", () => gone.abort());
    const signal = AbortSignal.any([gone.signal, this.#ending.signal]);
    const outcome = { route: "unknown", caller: "", error: undefined as string | undefined };
    let dialect: Dialect = "openai";
    this.#running++;
    try {
      this.#writeCommonHeaders(request, response, id);
      if (request.method === "OPTIONS") {
        checkSource(request.headers, this.#options);
        response.writeHead(204, preflightHeaders(request.headers)).end();
        return;
      }
      const { route, param, caller } = this.#admit(request, outcome);
      dialect = route.dialect;
      const exchange = new Exchange(
        request,
        response,
        signal,
        this.#exchangeOptions(id, caller, param),
      );
      await route.handle(exchange, this.#service);
    } catch (error) {
      outcome.error = this.#fail(response, error, dialectOf(request, dialect));
    } finally {
      this.#finish(request, response, { id, started, ...outcome });
    }
  }

  /** The gates; what a request must not pass throws. */
  #admit(
    request: IncomingMessage,
    outcome: { route: string; caller: string },
  ): Match & { readonly caller: string } {
    const { headers, method = "" } = request;
    checkSource(headers, this.#options);
    const path = (request.url ?? "").split("?")[0]!;
    const matches = this.#router.find(path);
    const match = matches.find(({ route }) => route.method === method);
    if (match !== undefined) outcome.route = match.route.path;
    // Without a key nothing is said, not even whether a path exists.
    const isPublic = match?.route.isPublic === true;
    const caller = isPublic ? "anonymous" : authenticate(headers, this.#options.keys);
    outcome.caller = caller;
    if (match === undefined) refusePath(matches, method);
    if (isPublic) return { ...match, caller };
    this.#rate.take(caller);
    if (this.#isDraining) {
      throw new OperationalError("serving.draining", "the server is ending; try another");
    }
    if (this.#running > this.#options.requestsMax) {
      throw new OperationalError(
        "engine.busy",
        `${this.#options.requestsMax} requests are being answered or wait; come again`,
      );
    }
    return { ...match, caller };
  }

  #exchangeOptions(
    id: string,
    caller: string,
    param: string,
  ): ConstructorParameters<typeof Exchange>[3] {
    const { depthMax, commentMs, stallMs } = this.#limits;
    const limits = { bytesMax: this.#options.bodyBytesMax, depthMax };
    return { id, caller, param, limits, keepAliveMs: commentMs, stallMs };
  }

  #writeCommonHeaders(request: IncomingMessage, response: ServerResponse, id: string): void {
    response.setHeader("x-request-id", id);
    response.setHeader("x-content-type-options", "nosniff");
    for (const [name, value] of Object.entries(corsHeaders(request.headers, this.#options))) {
      response.setHeader(name, value);
    }
    if (this.#isDraining) response.setHeader("connection", "close");
  }

  /** Tells the client what it may know; returns what the log is told. */
  #fail(response: ServerResponse, error: unknown, dialect: Dialect): string {
    const known = failureOf(error);
    if (known === undefined && response.destroyed) return "the client left";
    if (!response.headersSent && !response.destroyed) {
      this.#sendFailure(response, known ?? INTERNAL_FAILURE, dialect);
    } else response.end();
    if (known !== undefined && error instanceof OperationalError) return error.code;
    return error instanceof Error ? (error.stack ?? error.message) : String(error);
  }

  #sendFailure(response: ServerResponse, failure: Failure, dialect: Dialect): void {
    const { status, retryAfterMs } = failure;
    const body = dialect === "anthropic" ? anthropicError(failure) : openAiError(failure);
    const bytes = Buffer.from(JSON.stringify(body));
    if (retryAfterMs !== null) {
      response.setHeader("retry-after", String(Math.max(1, Math.ceil(retryAfterMs / 1000))));
      response.setHeader("retry-after-ms", String(Math.max(1, Math.ceil(retryAfterMs))));
    }
    if (status === 401) response.setHeader("www-authenticate", "Bearer");
    // What is left of a body that was refused is not read.
    if (!response.req.complete) response.setHeader("connection", "close");
    response.writeHead(status, {
      "content-type": "application/json; charset=utf-8",
      "content-length": bytes.length,
    });
    response.end(bytes);
  }

  #finish(
    { method = "" }: IncomingMessage,
    response: ServerResponse,
    ended: {
      id: string;
      started: number;
      route: string;
      caller: string;
      error: string | undefined;
    },
  ): void {
    const { id, started, route, caller, error } = ended;
    const isLeft = response.destroyed && !response.writableFinished;
    if (isLeft) this.#service.metrics.disconnected();
    const status = isLeft ? 499 : response.statusCode;
    this.#service.metrics.answered(route, status);
    const milliseconds = Math.round(performance.now() - started);
    const entry = { id, method: method.slice(0, 16), route, status, caller, milliseconds };
    this.#options.log(error === undefined ? entry : { ...entry, error });
    this.#running--;
    if (this.#running === 0) this.#onIdle?.();
  }

  /** Take no more requests, and wait for those that run. */
  async drain(): Promise<void> {
    this.#isDraining = true;
    this.#server.close();
    this.#server.closeIdleConnections();
    if (this.#running > 0) await new Promise<void>((resolve) => (this.#onIdle = resolve));
  }

  /** End everything now. */
  async close(): Promise<void> {
    this.#isDraining = true;
    this.#ending.abort();
    const closed = new Promise<void>((resolve) => this.#server.close(() => resolve()));
    this.#server.closeAllConnections();
    await closed;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }
}

/** What is refused at the gates has no route yet; Anthropic's clients say who they are. */
function dialectOf({ headers, url = "" }: IncomingMessage, dialect: Dialect): Dialect {
  const isAnthropic = "anthropic-version" in headers || url.includes("/v1/messages");
  return isAnthropic ? "anthropic" : dialect;
}

function refusePath(matches: readonly Match[], method: string): never {
  if (matches.length === 0) throw new OperationalError("serving.unknown", "there is no such path");
  const allowed = matches.map(({ route }: { readonly route: Route }) => route.method).join(", ");
  const given = /^[A-Z]{1,16}$/.test(method) ? method : "this method";
  throw new OperationalError("serving.method", `${given} is not for this path; use ${allowed}`);
}
