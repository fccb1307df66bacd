/**
 * @file The HTTP server: every request through the same gates, in the same order.
 *
 *     id → Host and Origin → route → key → rate → draining? full? → handler → metrics and log
 *
 * Node's own `http` does the protocol; its limits on headers, their time and idle sockets are set
 * here. A client that leaves aborts its work. `drain` takes no more requests and waits for those
 * that run, while /health and /ready still answer; `close` ends them.
 */
import { randomUUID } from "node:crypto";
import { createServer, type IncomingMessage, type Server, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import { OperationalError, reasonOf } from "../base/errors.ts";
import { type Failure, failureOf, INTERNAL_FAILURE } from "./failure.ts";
import { Admission, type Visit } from "./http/admission.ts";
import { type Dialect, Exchange, type ExchangeOptions } from "./http/exchange.ts";
import {
  checkSingle,
  checkSource,
  corsHeaders,
  type GuardOptions,
  preflightHeaders,
} from "./http/guard.ts";
import { type ApiKey, authenticate } from "./http/keys.ts";
import { RateLimit } from "./http/rate-limit.ts";
import { Metrics } from "./metrics.ts";
import type { ModelRegistry } from "./models/registry.ts";
import { anthropicError } from "./protocols/anthropic-error.ts";
import { openAiError } from "./protocols/openai-error.ts";
import { type Match, ROUTES, Router } from "./routes.ts";
import type { Service } from "./service.ts";

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
  /** Of one request's body. */
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
  /** Bytes of all requests' bodies together. */
  readonly bodiesBytesMax: number;
}

const HTTP_LIMITS: HttpLimits = {
  headersMs: 10_000,
  requestMs: 60_000,
  keepAliveMs: 5000,
  commentMs: 10_000,
  stallMs: 30_000,
  connectionsMax: 2048,
  depthMax: 64,
  bodiesBytesMax: 128 * 2 ** 20,
};
const HEADER_BYTES_MAX = 16 * 1024;

export class ApiServer implements AsyncDisposable {
  readonly #options: ServerOptions;
  readonly #limits: HttpLimits;
  readonly #server: Server;
  readonly #router = new Router(ROUTES);
  readonly #rate: RateLimit;
  readonly #service: Service;
  readonly #admission: Admission;
  readonly #ending = new AbortController();

  private constructor(options: ServerOptions) {
    this.#options = options;
    this.#limits = { ...HTTP_LIMITS, ...options.limits };
    this.#rate = new RateLimit(options.requestsPerMinute, () => performance.now());
    const { requestsMax, models } = options;
    const { bodiesBytesMax } = this.#limits;
    this.#admission = new Admission({ requestsMax, bodiesBytesMax });
    const metrics = new Metrics(() => this.#admission.bodyBytes);
    const now = (): number => Math.floor(Date.now() / 1000);
    const isDraining = (): boolean => this.#admission.isDraining;
    this.#service = { models, metrics, startedAt: now(), now, isDraining };
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
    this.#server.on("connection", (socket) => {
      metrics.connected(1);
      socket.once("close", () => metrics.connected(-1));
    });
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

  /** Requests that came in and are not answered yet. */
  get numOpen(): number {
    return this.#admission.numOpen;
  }

  #listen(): Promise<void> {
    const { host, port } = this.#options;
    return new Promise((resolve, reject) => {
      this.#server.once("error", (cause) => {
        const reason = reasonOf(cause);
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
    let visit: Visit | null = null;
    try {
      this.#writeCommonHeaders(request, response, id);
      checkSingle(request.headersDistinct);
      checkSource(request.headers, this.#options);
      if (isPreflight(request)) {
        response.writeHead(204, preflightHeaders(request.headers)).end();
        return;
      }
      const { match, caller, allow } = this.#identify(request, outcome);
      if (match === undefined) {
        response.writeHead(204, { allow }).end();
        return;
      }
      const { route, param } = match;
      dialect = route.dialect;
      if (route.isPublic !== true) visit = this.#admit(caller);
      const options = this.#exchangeOptions({ id, caller, param, visit });
      await route.handle(new Exchange(request, response, signal, options), this.#service);
    } catch (error) {
      outcome.error = this.#fail(response, error, dialectOf(request, dialect));
    } finally {
      this.#finish(request, response, { id, started, ...outcome });
      visit?.[Symbol.dispose]();
    }
  }

  /**
   * Who asks, and the route; none for a question which methods a path has. Without a key nothing is
   * said, not even whether a path exists.
   */
  #identify(
    { headers, method = "", url = "" }: IncomingMessage,
    outcome: { route: string; caller: string },
  ): { readonly match: Match | undefined; readonly caller: string; readonly allow: string } {
    const matches = this.#router.find(url.split("?")[0]!);
    const wanted = method === "HEAD" ? "GET" : method;
    const match = matches.find(({ route }) => route.method === wanted);
    if (match !== undefined) outcome.route = match.route.path;
    const isPublic = match?.route.isPublic === true;
    const caller = isPublic ? "anonymous" : authenticate(headers, this.#options.keys);
    outcome.caller = caller;
    if (match === undefined && (method !== "OPTIONS" || matches.length === 0)) {
      refusePath(matches, method);
    }
    return { match, caller, allow: allowOf(matches) };
  }

  #admit(caller: string): Visit {
    this.#rate.take(caller);
    return this.#admission.enter();
  }

  #exchangeOptions(
    own: Pick<ExchangeOptions, "id" | "caller" | "param" | "visit">,
  ): ExchangeOptions {
    const { depthMax, commentMs, stallMs } = this.#limits;
    const limits = { bytesMax: this.#options.bodyBytesMax, depthMax };
    return { ...own, limits, keepAliveMs: commentMs, stallMs };
  }

  #writeCommonHeaders(request: IncomingMessage, response: ServerResponse, id: string): void {
    response.setHeader("x-request-id", id);
    response.setHeader("x-content-type-options", "nosniff");
    for (const [name, value] of Object.entries(corsHeaders(request.headers, this.#options))) {
      response.setHeader(name, value);
    }
    if (this.#admission.isDraining) response.setHeader("connection", "close");
  }

  /** Tells the client what it may know; returns what the log is told. */
  #fail(response: ServerResponse, error: unknown, dialect: Dialect): string {
    const known = failureOf(error);
    if (known === undefined && response.destroyed) return "the client left";
    if (!response.headersSent && !response.destroyed) {
      this.#sendFailure(response, known ?? INTERNAL_FAILURE, dialect);
    } else response.end();
    if (known !== undefined && error instanceof OperationalError) {
      if (error.code === "engine.closed" && !this.#ending.signal.aborted) {
        void this.#options.models.revive();
      }
      return error.code;
    }
    return error instanceof Error ? (error.stack ?? error.message) : String(error);
  }

  #sendFailure(response: ServerResponse, failure: Failure, dialect: Dialect): void {
    const { status, retryAfterMs, allow } = failure;
    const body = dialect === "anthropic" ? anthropicError(failure) : openAiError(failure);
    const bytes = Buffer.from(JSON.stringify(body));
    if (retryAfterMs !== null) {
      response.setHeader("retry-after", String(Math.max(1, Math.ceil(retryAfterMs / 1000))));
      response.setHeader("retry-after-ms", String(Math.max(1, Math.ceil(retryAfterMs))));
    }
    if (allow !== null) response.setHeader("allow", allow);
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
  }

  /** Take no more requests, and wait for those that came; /ready says so meanwhile. */
  async drain(): Promise<void> {
    await this.#admission.drain();
    this.#server.close();
    this.#server.closeIdleConnections();
  }

  /** End everything now. */
  async close(): Promise<void> {
    void this.#admission.drain();
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

/** A browser's question whether a page may send what it wants to send. */
function isPreflight({ method, headers }: IncomingMessage): boolean {
  return method === "OPTIONS" && "access-control-request-method" in headers;
}

function refusePath(matches: readonly Match[], method: string): never {
  if (matches.length === 0) throw new OperationalError("serving.unknown", "there is no such path");
  const allow = allowOf(matches);
  const given = /^[A-Z]{1,16}$/.test(method) ? method : "this method";
  const message = `${given} is not for this path; use ${allow}`;
  throw new OperationalError("serving.method", message, { allow });
}

/** The methods of a path. */
function allowOf(matches: readonly Match[]): string {
  const methods = matches.map(({ route }) => route.method);
  return [...methods, ...(methods.includes("GET") ? ["HEAD"] : []), "OPTIONS"].join(", ");
}
