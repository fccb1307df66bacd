/** @file OpenAI's chat API as `hadal chat` uses it: one answer, piece by piece. */
import { OperationalError } from "../../base/errors.ts";

export interface Message {
  readonly role: "system" | "user" | "assistant";
  readonly content: string;
}

export interface Piece {
  readonly kind: "reasoning" | "content";
  readonly text: string;
}

export interface ChatSettings {
  readonly thinking: boolean;
  readonly maxTokens: number;
  readonly temperature: number;
}

export interface ChatServer {
  /** Without `/v1`. */
  readonly url: string;
  readonly key: string | undefined;
}

interface Chunk {
  readonly error?: { readonly message?: string };
  readonly choices?: readonly {
    readonly delta?: { readonly content?: string; readonly reasoning_content?: string };
  }[];
}

/** The first model of a server. */
export async function firstModel(server: ChatServer, signal: AbortSignal): Promise<string> {
  const response = await send(server, "/v1/models", { signal });
  const { data } = (await response.json()) as {
    readonly data?: readonly { readonly id: string }[];
  };
  const [first] = data ?? [];
  if (first !== undefined) return first.id;
  throw new OperationalError("serving.reply", `${server.url} serves no model`);
}

/** The answer to a conversation. */
export async function* ask(
  server: ChatServer,
  model: string,
  messages: readonly Message[],
  { settings, signal }: { readonly settings: ChatSettings; readonly signal: AbortSignal },
): AsyncGenerator<Piece> {
  const body = {
    model,
    messages,
    stream: true,
    max_tokens: settings.maxTokens,
    temperature: settings.temperature,
    ...(settings.thinking ? { thinking: { type: "enabled" } } : {}),
  };
  const init = { method: "POST", body: JSON.stringify(body), signal };
  const response = await send(server, "/v1/chat/completions", init);
  for await (const data of eventsOf(response)) {
    const { error, choices } = JSON.parse(data) as Chunk;
    if (error !== undefined) {
      throw new OperationalError("serving.reply", `${server.url} says: ${error.message}`);
    }
    const { reasoning_content, content } = choices?.[0]?.delta ?? {};
    if (reasoning_content) yield { kind: "reasoning", text: reasoning_content };
    if (content) yield { kind: "content", text: content };
  }
}

async function send(server: ChatServer, path: string, init: RequestInit): Promise<Response> {
  const { url, key } = server;
  const headers = {
    "content-type": "application/json",
    ...(key === undefined ? {} : { authorization: `Bearer ${key}` }),
  };
  let response: Response;
  try {
    response = await fetch(url.replace(/\/+$/, "") + path, { ...init, headers });
  } catch (cause) {
    if (cause instanceof Error && cause.name === "AbortError") throw cause;
    const reason = cause instanceof Error ? String(cause.cause ?? cause.message) : String(cause);
    throw new OperationalError("serving.reply", `${url} cannot be reached: ${reason}`, {}, cause);
  }
  if (response.ok) return response;
  const text = await response.text();
  throw new OperationalError("serving.reply", `${url} says: ${messageIn(text)}`);
}

function messageIn(text: string): string {
  try {
    const { error } = JSON.parse(text) as { readonly error?: { readonly message?: string } };
    return error?.message ?? text.slice(0, 200);
  } catch {
    return text.slice(0, 200);
  }
}

/** The data of a stream's events; comments and the end mark are dropped. */
async function* eventsOf(response: Response): AsyncGenerator<string> {
  const decoder = new TextDecoder();
  let held = "";
  for await (const bytes of response.body ?? []) {
    held += decoder.decode(bytes, { stream: true });
    const lines = held.split("\n");
    held = lines.pop() ?? "";
    for (const line of lines) {
      const data = line.startsWith("data: ") ? line.slice("data: ".length).trim() : "";
      if (data !== "" && data !== "[DONE]") yield data;
    }
  }
}
