/** @file From requests to jobs: thinking in two parts, forced tools, prefixes, formats. */
import assert from "node:assert/strict";
import { describe, test } from "node:test";
import type { EngineRequest } from "../inference/engine/api.ts";
import { errorOf, post, type Reply, startTestServer, type TestServer } from "./test-support.ts";

const MESSAGES = [{ role: "user", content: "Hello" }];
const SCHEMA = { type: "object", properties: { a: { type: "number" } } };

function chat(server: TestServer, fields: object): Promise<Reply> {
  return post(`${server.url}/v1/chat/completions`, {
    model: "tiny",
    messages: MESSAGES,
    ...fields,
  });
}

interface ChatChoice {
  readonly message: {
    readonly content: string | null;
    readonly reasoning_content?: string;
    readonly tool_calls?: readonly { readonly function: { name: string; arguments: string } }[];
  };
  readonly finish_reason: string;
  readonly logprobs: Readonly<Record<string, readonly unknown[]>> | null;
}

function choiceOf({ body }: Reply): ChatChoice {
  return (body["choices"] as ChatChoice[])[0]!;
}

describe("reasoning before structured output", () => {
  const says = ({ constraint, prompt }: EngineRequest): string =>
    constraint === null ? "I think." : `{"a": ${prompt.length}}`;

  test("is a request of its own, and the answer stands after it", async () => {
    await using server = await startTestServer({ says });
    const { tokenizer, requests } = server.engine;
    const reply = await chat(server, {
      thinking: { type: "enabled" },
      response_format: { type: "json_schema", json_schema: { name: "x", schema: SCHEMA } },
      logprobs: true,
    });
    const [reasoning, answer] = requests;
    assert.equal(reasoning!.constraint, null);
    assert.deepEqual(reasoning!.endTokens, [tokenizer.specialId("thinkEnd")]);
    assert.deepEqual(answer!.constraint, { kind: "jsonSchema", schema: SCHEMA });
    assert.equal(answer!.prompt.at(-1), tokenizer.specialId("thinkEnd"));
    assert.deepEqual(answer!.prompt.slice(0, reasoning!.prompt.length), reasoning!.prompt);
    const { message, logprobs } = choiceOf(reply);
    assert.equal(message.reasoning_content, "I think.");
    assert.equal(message.content, `{"a": ${answer!.prompt.length}}`);
    assert.equal(logprobs!["reasoning_content"]!.length, tokenizer.encode("I think.").length);
    const usage = reply.body["usage"] as Record<string, number>;
    assert.equal(usage["prompt_tokens"], reasoning!.prompt.length);
  });

  test("ends with its budget, and not with the end of the text", async () => {
    await using server = await startTestServer({
      says: ({ endTokens }) => (endTokens === null ? "So." : "word ".repeat(100)),
    });
    const reply = await post(`${server.url}/v1/messages`, {
      model: "tiny",
      max_tokens: 200,
      messages: MESSAGES,
      thinking: { type: "enabled", budget_tokens: 7 },
    });
    const { requests, tokenizer } = server.engine;
    assert.equal(requests[0]!.maxTokens, 7);
    assert.deepEqual(requests[0]!.adjustments!.bias, [[tokenizer.eosId, -100]]);
    assert.equal(requests[1]!.maxTokens, 193);
    const content = reply.body["content"] as { type: string; text?: string }[];
    assert.deepEqual(
      content.map(({ type }) => type),
      ["thinking", "text"],
    );
    assert.equal(content[1]!.text, "So.");
  });

  test("that uses up the answer's length leaves no answer, and says so", async () => {
    await using server = await startTestServer({ says: "word ".repeat(50) });
    const json = { response_format: { type: "json_object" } };
    const reply = await chat(server, { ...json, max_tokens: 5, reasoning_effort: "high" });
    assert.equal(server.engine.requests.length, 1);
    assert.equal(choiceOf(reply).finish_reason, "length");
    assert.equal(choiceOf(reply).message.content, "");
  });
});

describe("a tool that must be called", () => {
  const tool = (name: string): object => ({
    type: "function",
    function: { name, parameters: SCHEMA },
  });

  test("is begun for the model, whose arguments follow the schema", async () => {
    await using server = await startTestServer({ says: '{"a": 1}' });
    const tools = [tool("first"), tool("second")];
    const choice = { type: "function", function: { name: "second" } };
    const reply = await chat(server, { tools, tool_choice: choice });
    const [request] = server.engine.requests;
    assert.deepEqual(request!.constraint, { kind: "jsonSchema", schema: SCHEMA });
    assert.match(server.engine.tokenizer.decode(request!.prompt), /second\n```json\n$/);
    const { message, finish_reason } = choiceOf(reply);
    assert.deepEqual(message.tool_calls![0]!.function, { name: "second", arguments: '{"a": 1}' });
    assert.deepEqual([message.content, finish_reason], [null, "tool_calls"]);
  });

  test("must be clear: required with several is refused, an unknown name too", async () => {
    await using server = await startTestServer();
    const tools = [tool("first"), tool("second")];
    const many = await chat(server, { tools, tool_choice: "required" });
    assert.equal(errorOf(many)["param"], "tool_choice");
    const unknown = { type: "function", function: { name: "third" } };
    assert.equal((await chat(server, { tools, tool_choice: unknown })).status, 400);
    assert.equal((await chat(server, { tool_choice: "required" })).status, 400);
  });

  test("none hides the tools from the prompt", async () => {
    await using server = await startTestServer();
    await chat(server, { tools: [tool("first")], tool_choice: "none" });
    await chat(server, {});
    const [hidden, plain] = server.engine.requests;
    assert.deepEqual(hidden!.prompt, plain!.prompt);
  });
});

describe("DeepSeek's additions", () => {
  test("a prefix is gone on with: its turn has no end", async () => {
    await using server = await startTestServer({ says: " and more" });
    const begun = { role: "assistant", content: "```ts\n", prefix: true };
    const url = `${server.url}/beta/chat/completions`;
    const reply = await post(url, { model: "tiny", messages: [...MESSAGES, begun] });
    assert.equal(choiceOf(reply).message.content, " and more");
    const { tokenizer, requests } = server.engine;
    assert.match(tokenizer.decode(requests[0]!.prompt), /<｜Assistant｜>```ts\n$/);
    const early = await post(url, { model: "tiny", messages: [begun, ...MESSAGES] });
    assert.equal(errorOf(early)["param"], "messages[0].prefix");
  });

  test("usage tells hits and misses of the cache, which add up to the prompt", async () => {
    await using server = await startTestServer();
    const usage = (await chat(server, {})).body["usage"] as Record<string, number>;
    const { prompt_cache_hit_tokens: hit, prompt_cache_miss_tokens: miss } = usage;
    assert.equal(hit! + miss!, usage["prompt_tokens"]);
  });

  test("earlier reasoning may be sent back or left out", async () => {
    await using server = await startTestServer();
    const turn = { role: "assistant", content: "yes", reasoning_content: "hm" };
    const { status } = await chat(server, { messages: [...MESSAGES, turn, ...MESSAGES] });
    assert.equal(status, 200);
  });
});

test("text and tokens lead to each other", async () => {
  await using server = await startTestServer();
  const prompt = "export interface Ä🌍 {}";
  const tokenized = await post(`${server.url}/tokenize`, {
    model: "tiny",
    prompt,
    add_special_tokens: false,
  });
  const { tokens, count } = tokenized.body as { tokens: number[]; count: number };
  assert.equal(count, tokens.length);
  const back = await post(`${server.url}/detokenize`, { model: "tiny", tokens });
  assert.equal(back.body["prompt"], prompt);
});
