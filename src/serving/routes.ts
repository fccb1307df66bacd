/**
 * @file Every route of the server. What is not marked public needs a key where there are keys; a
 * test goes through this list.
 */
import { chatPage } from "./chat-page.ts";
import { countTokens, messages } from "./protocols/anthropic-messages.ts";
import { listModels, loadModel, showModel, unloadModel } from "./protocols/models.ts";
import { chatCompletions } from "./protocols/openai-chat.ts";
import { completions } from "./protocols/openai-completions.ts";
import { embeddings } from "./protocols/openai-embeddings.ts";
import { countInputTokens, responses } from "./protocols/openai-responses.ts";
import { detokenize, health, metrics, ready, tokenize } from "./protocols/operations.ts";
import type { Handler, Route } from "./service.ts";

/** OpenAI's and DeepSeek's base addresses: with and without a version, and DeepSeek's beta. */
const BASES = ["/v1", "", "/beta", "/beta/v1"];

const get = (path: string, handle: Handler): Route => ({
  method: "GET",
  path,
  dialect: "openai",
  handle,
});

const post = (path: string, handle: Handler): Route => ({
  method: "POST",
  path,
  dialect: "openai",
  handle,
});

export const ROUTES: readonly Route[] = [
  { ...get("/", chatPage), isPublic: true },
  { ...get("/health", health), isPublic: true },
  { ...get("/ready", ready), isPublic: true },
  get("/metrics", metrics),
  ...BASES.flatMap((base) => [
    post(`${base}/chat/completions`, chatCompletions),
    post(`${base}/completions`, completions),
    post(`${base}/embeddings`, embeddings),
    post(`${base}/responses`, responses),
    post(`${base}/responses/input_tokens`, countInputTokens),
    get(`${base}/models`, listModels),
    post(`${base}/models/load`, loadModel),
    post(`${base}/models/unload`, unloadModel),
    get(`${base}/models/*`, showModel),
  ]),
  ...["/v1", "/anthropic/v1"].flatMap((base): Route[] => [
    { ...post(`${base}/messages`, messages), dialect: "anthropic" },
    { ...post(`${base}/messages/count_tokens`, countTokens), dialect: "anthropic" },
  ]),
  post("/tokenize", tokenize),
  post("/detokenize", detokenize),
];

/** The route of a request, and what its `*` stood for. */
export interface Match {
  readonly route: Route;
  readonly param: string;
}

/** Routes by their raw path: nothing is decoded, joined or normalised before it is compared. */
export class Router {
  readonly #exact = new Map<string, Route[]>();
  readonly #open: readonly Route[];

  constructor(routes: readonly Route[]) {
    for (const route of routes) {
      this.#exact.set(route.path, [...(this.#exact.get(route.path) ?? []), route]);
    }
    this.#open = routes.filter(({ path }) => path.endsWith("*"));
  }

  /** The routes of a path, whatever their method. */
  find(path: string): readonly Match[] {
    const exact = this.#exact.get(path)?.map((route) => ({ route, param: "" }));
    if (exact !== undefined) return exact;
    return this.#open
      .filter((route) => path.startsWith(route.path.slice(0, -1)))
      .map((route) => ({ route, param: path.slice(route.path.length - 1) }))
      .filter(({ param }) => param !== "");
  }
}
