/** @file A conversation in the terminal: turns, commands, interruptions, hostile answers. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { FakeTerminal } from "../../../test/fake-terminal.ts";
import { startTestServer, type TestServerOptions } from "../../serving/test-support.ts";
import { Output } from "../output.ts";
import type { Message } from "./chat-client.ts";
import { ChatLoop, printable } from "./chat-loop.ts";

interface Talk {
  readonly shown: string;
  readonly messages: readonly Message[];
  readonly prompts: readonly string[];
}

/** Runs a conversation of these lines; a line may be a function that gives it. */
async function talk(
  lines: readonly (string | ((interrupt: () => void) => string))[],
  options: TestServerOptions = {},
): Promise<Talk> {
  await using server = await startTestServer(options);
  const terminal = new FakeTerminal();
  const output = new Output({ stdout: terminal, stderr: terminal, env: {}, json: false });
  const left = [...lines];
  let interrupt = (): void => {};
  const source = {
    next: async (): Promise<string | null> => {
      const line = left.shift();
      return typeof line === "function" ? line(interrupt) : (line ?? null);
    },
    onInterrupt: (listener: () => void): void => {
      interrupt = listener;
    },
  };
  const loop = new ChatLoop(output, source, {
    server: { url: server.url, key: undefined },
    model: "tiny",
    system: "Be brief.",
    settings: { thinking: false, maxTokens: 100, temperature: 0 },
  });
  const messages = await loop.run();
  const { tokenizer, requests } = server.engine;
  const prompts = requests.map(({ prompt }) => tokenizer.decode(prompt));
  return { shown: terminal.text, messages, prompts };
}

test("an answer becomes part of what the next question stands after", async () => {
  const { messages, prompts } = await talk(["Hi", "And \\", "you?"]);
  assert.equal(messages.length, 5);
  assert.match(prompts[1]!, /Be brief\.<｜User｜>Hi<｜Assistant｜>Hello, world\./);
  assert.match(prompts[1]!, /<｜User｜>And \nyou\?<｜Assistant｜>$/);
});

test("commands change the conversation and are never sent", async () => {
  const { shown, prompts, messages } = await talk([
    "a",
    "/retry",
    "/new",
    "/nothing",
    "/help",
    "b",
  ]);
  assert.equal(prompts.length, 3);
  assert.equal(prompts[0], prompts[1]);
  assert.doesNotMatch(prompts[2]!, />a</);
  assert.equal(messages.length, 3);
  assert.match(shown, /there is no \/nothing/);
  assert.match(shown, /\/thinking/);
});

test("thinking is shown and not kept", async () => {
  const { shown, messages } = await talk(["/thinking", "a"], { says: "hm</think>yes" });
  assert.match(shown, /hm\n\nyes/);
  assert.equal(messages.at(-1)!.content, "yes");
});

test("an interruption keeps what was said, and the conversation goes on", async () => {
  let interrupt = (): void => {};
  const says = ({ prompt }: { prompt: Int32Array }): string =>
    prompt.length < 20 ? "word ".repeat(1000) : "done";
  const { shown, messages } = await talk(
    [
      (given) => {
        interrupt = given;
        return "long";
      },
      "again",
    ],
    { says, beforeToken: (_, index) => (index === 20 ? interrupt() : undefined) },
  );
  assert.match(shown, /\(interrupted\)/);
  assert.match(messages[2]!.content, /^word word/);
  assert.deepEqual(messages.at(-1), { role: "assistant", content: "done" });
});

test("a server's refusal is shown, and its question is not kept", async () => {
  const { shown, messages } = await talk(["x ".repeat(200), "y"], { contextTokens: 64 });
  assert.match(shown, /the context of tiny takes 64/);
  assert.equal(messages.length, 3);
});

test("what a model writes cannot steer the terminal", async () => {
  const { shown } = await talk(["x"], { says: "a\u001b]0;title\u0007b\u009bc" });
  assert.equal(printable("\u001b[2J\r\n\t"), "␛[2J␍\n\t");
  // biome-ignore lint/suspicious/noControlCharactersInRegex: they are what must not be there
  assert.doesNotMatch(shown, /[\u001b\u0007\u009b]/);
});
