/** @file OpenAI's own client and the AI SDK against the server: their checks are the judges. */
import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { createDeepSeek } from "@ai-sdk/deepseek";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateText, jsonSchema, streamText, tool } from "ai";
import OpenAI from "openai";
import { startTestServer, type TestServer } from "../test-support.ts";

const THINKS = "I count.\n</think>\n\nAfter three comes four.";
const CALL =
  "Let me see.<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>weather\n```json\n" +
  '{"city": "Nazaré"}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>';
const WEATHER = {
  type: "function",
  function: {
    name: "weather",
    description: "the weather of a city",
    parameters: { type: "object", properties: { city: { type: "string" } } },
  },
} as const;

function clientOf({ url }: TestServer): OpenAI {
  return new OpenAI({ baseURL: `${url}/v1`, apiKey: "none", maxRetries: 0 });
}

const ASK = { model: "tiny", messages: [{ role: "user", content: "Hello" }] } as const;

describe("OpenAI's client", () => {
  test("reads a chat completion, and its stream adds up to it", async () => {
    await using server = await startTestServer({ says: "Olá, mundo 🌍." });
    const openai = clientOf(server);
    const whole = await openai.chat.completions.create({ ...ASK, messages: [...ASK.messages] });
    assert.equal(whole.choices[0]!.message.content, "Olá, mundo 🌍.");
    assert.equal(whole.choices[0]!.finish_reason, "stop");
    assert.equal(
      whole.usage!.total_tokens,
      whole.usage!.prompt_tokens + whole.usage!.completion_tokens,
    );
    const stream = openai.chat.completions.stream({
      ...ASK,
      messages: [...ASK.messages],
      stream_options: { include_usage: true },
    });
    const final = await stream.finalChatCompletion();
    assert.deepEqual(final.choices[0]!.message.content, whole.choices[0]!.message.content);
    assert.deepEqual(final.usage, whole.usage);
  });

  test("gets several choices, each stream with its own index", async () => {
    const says = ({ seed }: { seed: number }): string => `answer ${seed}`;
    await using server = await startTestServer({ says });
    const openai = clientOf(server);
    const request = { ...ASK, messages: [...ASK.messages], n: 3, seed: 5 };
    const whole = await openai.chat.completions.create(request);
    const texts = whole.choices.map(({ message }) => message.content);
    assert.deepEqual(texts, ["answer 5", "answer 6", "answer 7"]);
    const parts = ["", "", ""];
    for await (const { choices } of await openai.chat.completions.create({
      ...request,
      stream: true,
    })) {
      for (const { index, delta } of choices) parts[index] += delta.content ?? "";
    }
    assert.deepEqual(parts, texts);
  });

  test("gets log-probabilities with the bytes of each token", async () => {
    await using server = await startTestServer({ says: "é" });
    const { choices } = await clientOf(server).chat.completions.create({
      ...ASK,
      messages: [...ASK.messages],
      logprobs: true,
      top_logprobs: 2,
    });
    const content = choices[0]!.logprobs!.content!;
    assert.deepEqual(
      content.flatMap(({ bytes }) => bytes!),
      [0xc3, 0xa9],
    );
    assert.ok(content.every(({ top_logprobs }) => top_logprobs.length === 2));
  });

  test("puts a streamed tool call together as the whole answer has it", async () => {
    await using server = await startTestServer({ says: CALL });
    const openai = clientOf(server);
    const request = { ...ASK, messages: [...ASK.messages], tools: [WEATHER] };
    const whole = await openai.chat.completions.create(request);
    assert.equal(whole.choices[0]!.finish_reason, "tool_calls");
    const [call] = whole.choices[0]!.message.tool_calls!;
    assert.ok(call?.type === "function");
    assert.equal(call.function.name, "weather");
    assert.deepEqual(JSON.parse(call.function.arguments), { city: "Nazaré" });
    const final = await openai.chat.completions.stream(request).finalChatCompletion();
    const [streamed] = final.choices[0]!.message.tool_calls!;
    assert.ok(streamed?.type === "function");
    assert.equal(streamed.function.arguments, call.function.arguments);
    assert.equal(final.choices[0]!.message.content, "Let me see.");
  });

  test("heals a text prompt that ends inside a token, unless tokens are told", async () => {
    await using server = await startTestServer({ says: "!" });
    const openai = clientOf(server);
    const { tokenizer } = server.engine;
    const ask = { model: "tiny", prompt: "export const ", max_tokens: 4 };
    const exact = [tokenizer.bosId, ...tokenizer.encode(ask.prompt)];
    await openai.completions.create(ask);
    await openai.completions.create({ ...ask, suffix: ";" });
    await openai.completions.create({ ...ask, echo: true });
    await openai.completions.create({ ...ask, logprobs: 1 });
    await openai.completions.create({ ...ask, prompt: exact });
    const [text, gap, echoed, told, tokens] = server.engine.requests;
    const { bytes, numTokens } = text!.healing!;
    assert.ok(ask.prompt.endsWith(new TextDecoder().decode(bytes)));
    assert.deepEqual([...text!.prompt], exact.slice(0, exact.length - numTokens));
    assert.deepEqual(gap!.healing, text!.healing);
    for (const request of [echoed!, told!, tokens!]) {
      assert.deepEqual([[...request.prompt], request.healing], [exact, null]);
    }
  });

  test("completes texts: echo, several prompts, log-probabilities, a gap", async () => {
    await using server = await startTestServer({ says: " and so on" });
    const openai = clientOf(server);
    const two = await openai.completions.create({
      model: "tiny",
      prompt: ["one", "two"],
      echo: true,
      logprobs: 1,
      max_tokens: 50,
    });
    assert.deepEqual(
      two.choices.map(({ text }) => text),
      ["one and so on", "two and so on"],
    );
    const { tokens, token_logprobs, text_offset } = two.choices[0]!.logprobs!;
    assert.equal(tokens!.length, token_logprobs!.length);
    assert.equal(token_logprobs![0], null);
    assert.equal(tokens!.slice(1).join(""), "one and so on");
    assert.equal(text_offset!.at(-1), "one and so on".length - tokens!.at(-1)!.length);
    await openai.completions.create({ model: "tiny", prompt: "f(", suffix: ")", max_tokens: 4 });
    const { tokenizer, requests } = server.engine;
    assert.equal(requests.at(-1)!.prompt[1], tokenizer.specialId("fimBegin"));
  });

  test("lists models and decodes embeddings, which it asks for in base64", async () => {
    await using server = await startTestServer();
    const openai = clientOf(server);
    const { data } = await openai.models.list();
    assert.deepEqual(
      data.map(({ id, object }) => [id, object]),
      [["tiny", "model"]],
    );
    assert.equal((await openai.models.retrieve("tiny")).id, "tiny");
    const { data: vectors } = await openai.embeddings.create({ model: "tiny", input: ["a", "bb"] });
    const length = Math.hypot(...vectors[0]!.embedding);
    assert.ok(Math.abs(length - 1) < 1e-6, `${length}`);
  });

  test("reads a response and its stream's events", async () => {
    await using server = await startTestServer({ says: THINKS });
    const openai = clientOf(server);
    const request = { model: "tiny", input: "three?", reasoning: { effort: "high" } } as const;
    const whole = await openai.responses.create(request);
    assert.equal(whole.output_text, "After three comes four.");
    assert.deepEqual(
      whole.output.map(({ type }) => type),
      ["reasoning", "message"],
    );
    let text = "";
    let next = 0;
    for await (const event of await openai.responses.create({ ...request, stream: true })) {
      assert.equal(event.sequence_number, next++);
      if (event.type === "response.output_text.delta") text += event.delta;
      if (event.type === "response.completed") assert.equal(event.response.status, "completed");
    }
    assert.equal(text, whole.output_text);
    const [item] = (await openai.responses.stream(request).finalResponse()).output;
    assert.equal(item!.type, "reasoning");
  });

  test("is given an error in its own form, in the middle of a stream too", async () => {
    const beforeToken = (_: unknown, index: number): void => {
      if (index === 2) throw new RangeError("the engine broke");
    };
    await using server = await startTestServer({ beforeToken });
    const openai = clientOf(server);
    await assert.rejects(
      openai.chat.completions.create({ ...ASK, model: "none", messages: [...ASK.messages] }),
      (error) => error instanceof OpenAI.NotFoundError && error.code === "model_not_found",
    );
    const stream = await openai.chat.completions.create({
      ...ASK,
      messages: [...ASK.messages],
      stream: true,
    });
    await assert.rejects(async () => {
      for await (const _ of stream);
    }, /internal error/);
    assert.match(server.log.at(-1)!.error!, /the engine broke/);
  });
});

describe("the AI SDK", () => {
  test("reads text, reasoning and usage of DeepSeek's API", async () => {
    await using server = await startTestServer({ says: THINKS });
    const deepseek = createDeepSeek({ baseURL: server.url, apiKey: "none" });
    const { text, reasoningText, usage, finishReason } = await generateText({
      model: deepseek("tiny"),
      prompt: "three?",
      providerOptions: { deepseek: { thinking: { type: "enabled" } } },
      maxRetries: 0,
    });
    assert.deepEqual([text, reasoningText], ["After three comes four.", "I count."]);
    assert.equal(finishReason, "stop");
    assert.equal(usage.inputTokens, server.engine.requests[0]!.prompt.length);
  });

  test("streams text and tool calls of a compatible API", async () => {
    await using server = await startTestServer({ says: CALL });
    const provider = createOpenAICompatible({
      name: "hadal",
      baseURL: `${server.url}/v1`,
      includeUsage: true,
    });
    const result = streamText({
      model: provider("tiny"),
      prompt: "weather?",
      tools: {
        weather: tool({
          inputSchema: jsonSchema<{ city: string }>({
            type: "object",
            properties: { city: { type: "string" } },
          }),
        }),
      },
      maxRetries: 0,
    });
    const [call] = await result.toolCalls;
    assert.deepEqual([call!.toolName, call!.input], ["weather", { city: "Nazaré" }]);
    assert.equal(await result.text, "Let me see.");
    assert.equal(await result.finishReason, "tool-calls");
    assert.ok((await result.usage).outputTokens! > 0);
  });
});
