/**
 * @file One streamed completion as the load generator asks for it: when each token came.
 *
 * Node's own client on kept-alive sockets, and no more parsing than is needed, so that what is
 * measured is the server.
 */
import { Agent, type ClientRequest, type IncomingMessage, request } from "node:http";
import { OperationalError } from "../../../base/errors.ts";

export interface Asked {
  readonly prompt: readonly number[];
  readonly maxTokens: number;
  readonly seed: number;
  /** An event for every token, also where its text is not complete yet. */
  readonly reportsEveryToken?: boolean;
}

export interface Streamed {
  readonly askedAt: number;
  /** Milliseconds of `performance.now()` at each event that carried a token. */
  readonly eventTimes: readonly number[];
  readonly completionTokens: number;
  readonly cachedTokens: number;
}

export interface Target {
  readonly url: string;
  readonly model: string;
  /** The end token, which is kept from being chosen: lengths are the workload's to say. */
  readonly eosId: number;
}

export class CompletionClient implements Disposable {
  readonly #target: Target;
  readonly #agent = new Agent({ keepAlive: true, maxSockets: Infinity });

  constructor(target: Target) {
    this.#target = target;
  }

  /** Ask; `onToken` is told of every event with a token. */
  async stream(asked: Asked, signal?: AbortSignal, onToken?: () => void): Promise<Streamed> {
    const askedAt = performance.now();
    const response = await this.#post("/v1/completions", this.#bodyOf(asked), signal);
    const eventTimes: number[] = [];
    let held = "";
    let last = "";
    response.setEncoding("utf8");
    for await (const part of response as AsyncIterable<string>) {
      held += part;
      for (let end = held.indexOf("\n\n"); end >= 0; end = held.indexOf("\n\n")) {
        const event = held.slice(0, end);
        held = held.slice(end + 2);
        if (event.startsWith("data: {")) last = event;
        if (!event.includes('"finish_reason":null')) continue;
        eventTimes.push(performance.now());
        onToken?.();
      }
    }
    return { askedAt, eventTimes, ...usageIn(last) };
  }

  /** Ask for a whole answer at once; milliseconds until it was there. */
  async whole(asked: Asked): Promise<number> {
    const askedAt = performance.now();
    const body = { ...this.#bodyOf(asked), stream: false, stream_options: null };
    const response = await this.#post("/v1/completions", body);
    for await (const _ of response);
    return performance.now() - askedAt;
  }

  /** Values of `/metrics`, each summed over its labels. */
  async metrics(names: readonly string[]): Promise<number[]> {
    const text = await (await fetch(`${this.#target.url}/metrics`)).text();
    return names.map((name) => {
      const lines = text.matchAll(new RegExp(`^hadal_${name}(?:\\{[^}]*\\})? (.*)$`, "gm"));
      return [...lines].reduce((sum, [, value]) => sum + Number(value), 0);
    });
  }

  #bodyOf({ prompt, maxTokens, seed, reportsEveryToken }: Asked): Record<string, unknown> {
    return {
      model: this.#target.model,
      prompt,
      max_tokens: maxTokens,
      seed,
      logit_bias: { [this.#target.eosId]: -100 },
      stream: true,
      stream_options: { include_usage: true },
      ...(reportsEveryToken === true ? { logprobs: 0 } : {}),
    };
  }

  async #post(path: string, value: unknown, signal?: AbortSignal): Promise<IncomingMessage> {
    const body = Buffer.from(JSON.stringify(value));
    const { promise, resolve, reject } = Promise.withResolvers<IncomingMessage>();
    const asked: ClientRequest = request(
      this.#target.url + path,
      {
        method: "POST",
        agent: this.#agent,
        headers: { "content-type": "application/json", "content-length": body.length },
        ...(signal === undefined ? {} : { signal }),
      },
      resolve,
    );
    asked.on("error", reject);
    asked.end(body);
    const response = await promise;
    if (response.statusCode === 200) return response;
    let text = "";
    for await (const part of response) text += part;
    throw new OperationalError("platform.benchmark", `the server refused: ${text.slice(0, 500)}`);
  }

  [Symbol.dispose](): void {
    this.#agent.destroy();
  }
}

function usageIn(event: string): Pick<Streamed, "completionTokens" | "cachedTokens"> {
  const { usage, error } = JSON.parse(event.slice("data: ".length)) as {
    readonly usage?: { completion_tokens: number; prompt_cache_hit_tokens: number } | null;
    readonly error?: { readonly message: string };
  };
  if (!usage) throw new OperationalError("platform.benchmark", `a stream broke: ${error?.message}`);
  const { completion_tokens, prompt_cache_hit_tokens } = usage;
  return { completionTokens: completion_tokens, cachedTokens: prompt_cache_hit_tokens };
}
