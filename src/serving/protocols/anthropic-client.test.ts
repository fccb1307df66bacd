/** @file Anthropic's own client against the server. */
import assert from "node:assert/strict";
import { test } from "node:test";
import Anthropic from "@anthropic-ai/sdk";
import { startTestServer, type TestServer } from "../test-support.ts";

const CALL =
  "I look.<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>look\n```json\n" +
  '{"at": [1, 2]}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>';
const LOOK = {
  name: "look",
  input_schema: { type: "object", properties: { at: { type: "array" } } },
} as const;

function clientOf({ url }: TestServer): Anthropic {
  return new Anthropic({ baseURL: url, apiKey: "none", maxRetries: 0 });
}

test("a message and its stream are the same, tools and reasoning included", async () => {
  await using server = await startTestServer({ says: `Hm.\n</think>\n\n${CALL}` });
  const client = clientOf(server);
  const request = {
    model: "claude-whatever",
    max_tokens: 500,
    messages: [{ role: "user", content: "look" }],
    tools: [{ ...LOOK, input_schema: { ...LOOK.input_schema } }],
    thinking: { type: "adaptive" },
  } satisfies Anthropic.MessageCreateParamsNonStreaming;
  const whole = await client.messages.create(request);
  assert.deepEqual(
    whole.content.map(({ type }) => type),
    ["thinking", "text", "tool_use"],
  );
  assert.equal(whole.stop_reason, "tool_use");
  const call = whole.content[2]!;
  assert.ok(call.type === "tool_use");
  assert.deepEqual(call.input, { at: [1, 2] });
  const streamed = await client.messages.stream(request).finalMessage();
  const withoutIds = (content: Anthropic.ContentBlock[]): unknown =>
    content.map((block) => ({ ...block, id: "" }));
  assert.deepEqual(withoutIds(streamed.content), withoutIds(whole.content));
  assert.deepEqual(streamed.usage.output_tokens, whole.usage.output_tokens);
  assert.equal(streamed.stop_reason, whole.stop_reason);
});

test("a stop sequence ends the text and is told", async () => {
  await using server = await startTestServer({ says: "one, two, three" });
  const message = await clientOf(server).messages.create({
    model: "tiny",
    max_tokens: 100,
    stop_sequences: [", three"],
    messages: [{ role: "user", content: "count" }],
  });
  assert.deepEqual([message.stop_reason, message.stop_sequence], ["stop_sequence", ", three"]);
  assert.deepEqual(message.content, [{ type: "text", text: "one, two" }]);
});

test("tokens are counted as the prompt of a message has them", async () => {
  await using server = await startTestServer();
  const client = clientOf(server);
  const request = {
    model: "tiny",
    system: "Be brief.",
    messages: [{ role: "user", content: "Hello there" }],
  } satisfies Anthropic.MessageCountTokensParams;
  const { input_tokens } = await client.messages.countTokens(request);
  const message = await client.messages.create({ ...request, max_tokens: 10 });
  assert.equal(message.usage.input_tokens, input_tokens);
});

test("a tool's result goes into the prompt, an image is refused by name", async () => {
  await using server = await startTestServer();
  const client = clientOf(server);
  const conversation = [
    { role: "user", content: "look" },
    { role: "assistant", content: [{ type: "tool_use", id: "t1", name: "look", input: {} }] },
    { role: "user", content: [{ type: "tool_result", tool_use_id: "t1", content: "a whale" }] },
  ] satisfies Anthropic.MessageParam[];
  await client.messages.create({ model: "tiny", max_tokens: 9, messages: conversation });
  const { engine } = server;
  assert.match(engine.tokenizer.decode(engine.requests[0]!.prompt), /a whale/);
  const source = { type: "url", url: "http://169.254.169.254/" } as const;
  await assert.rejects(
    client.messages.create({
      model: "tiny",
      max_tokens: 9,
      messages: [{ role: "user", content: [{ type: "image", source }] }],
    }),
    (error) =>
      error instanceof Anthropic.BadRequestError &&
      /messages\[0\]\.content\[0\]\.type is not supported/.test(error.message),
  );
});
