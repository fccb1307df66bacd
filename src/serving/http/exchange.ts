/**
 * @file One request being answered, as handlers see it: no sockets, no headers to forget.
 */
import type { IncomingMessage, ServerResponse } from "node:http";
import { defined } from "../../base/errors.ts";
import type { Visit } from "./admission.ts";
import { EventStream } from "./event-stream.ts";
import { type BodyLimits, readJsonBody } from "./json-body.ts";

/** The protocols whose errors differ. */
export type Dialect = "openai" | "anthropic";

export interface ExchangeOptions {
  readonly id: string;
  readonly caller: string;
  /** What the pattern's `*` stood for. */
  readonly param: string;
  readonly limits: BodyLimits;
  /** null on public routes, which take no body. */
  readonly visit: Visit | null;
  readonly keepAliveMs: number;
  readonly stallMs: number;
}

export class Exchange {
  /** Made here; a client's own ids name nothing. */
  readonly id: string;
  /** The name of the key, "anonymous" without keys. */
  readonly caller: string;
  readonly param: string;
  /** Aborted when the client leaves, or when the server ends without waiting. */
  readonly signal: AbortSignal;
  readonly #request: IncomingMessage;
  readonly #response: ServerResponse;
  readonly #options: ExchangeOptions;

  constructor(
    request: IncomingMessage,
    response: ServerResponse,
    signal: AbortSignal,
    options: ExchangeOptions,
  ) {
    this.#request = request;
    this.#response = response;
    this.#options = options;
    this.signal = signal;
    this.id = options.id;
    this.caller = options.caller;
    this.param = options.param;
  }

  /** The request's JSON; once it is there, the request runs. */
  async body(): Promise<unknown> {
    const { limits } = this.#options;
    const visit = defined(this.#options.visit, "the visit of a request with a body");
    const value = await readJsonBody(this.#request, limits, (count) => visit.hold(count));
    visit.run();
    return value;
  }

  json(status: number, value: unknown, headers: Readonly<Record<string, string>> = {}): void {
    this.send(status, "application/json; charset=utf-8", JSON.stringify(value), headers);
  }

  send(
    status: number,
    kind: string,
    body: string,
    headers: Readonly<Record<string, string>> = {},
  ): void {
    const bytes = Buffer.from(body);
    this.#response.writeHead(status, {
      ...headers,
      "content-type": kind,
      "content-length": bytes.length,
    });
    this.#response.end(bytes);
  }

  /** Begin to answer with events. */
  events(): EventStream {
    const { keepAliveMs, stallMs } = this.#options;
    return new EventStream(this.#response, { keepAliveMs, stallMs });
  }
}
