/** @file `hadal serve` and `hadal chat` as processes, with the fixtures' trained checkpoint. */
import assert from "node:assert/strict";
import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, rmSync } from "node:fs";
import { connect } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, describe, test } from "node:test";
import { fileURLToPath } from "node:url";
import { Random } from "../src/base/random.ts";
import { post, streamed, TINY_CHAT } from "../src/serving/test-support.ts";
import { leashed } from "./support/leash.ts";

const HADAL = fileURLToPath(new URL("../bin/hadal.js", import.meta.url));

/** Prefixes are kept here, not in the folder of whoever runs the tests. */
const XDG_CACHE_HOME = mkdtempSync(join(tmpdir(), "hadal-cache-"));
const ENV = { ...process.env, XDG_CACHE_HOME };
after(() => rmSync(XDG_CACHE_HOME, { recursive: true }));

interface Serving extends Disposable {
  readonly child: ChildProcess;
  readonly url: string;
  /** Everything printed so far. */
  printed(): string;
}

async function serve(...flags: readonly string[]): Promise<Serving> {
  const words = ["serve", "--model", TINY_CHAT, "--port", "0", ...flags];
  const child = spawn(process.execPath, [HADAL, ...words], { env: ENV });
  let text = "";
  child.stdout.setEncoding("utf8").on("data", (part: string) => {
    text += part;
  });
  child.stderr.setEncoding("utf8").on("data", (part: string) => {
    text += part;
  });
  while (!/max_tokens/.test(text)) {
    const [ended] = await Promise.race([once(child.stdout, "data"), once(child, "exit")]);
    if (typeof ended === "number") assert.fail(text);
  }
  const url = /http:\/\/127\.0\.0\.1:\d+/.exec(text)![0];
  return { child, url, printed: () => text, ...leashed(child) };
}

async function endOf(child: ChildProcess): Promise<unknown> {
  return child.exitCode ?? (await once(child, "exit"))[0];
}

describe("a served model", () => {
  let serving: Serving;
  before(async () => {
    serving = await serve("--alias", "claude*=tiny-chat");
  });
  after(async () => {
    serving.child.kill("SIGTERM");
    assert.equal(await endOf(serving.child), 143);
  });

  test("answers the request that it printed", async () => {
    const body = /-d '(.*)'/.exec(serving.printed())![1]!;
    const { status, body: reply } = await post(`${serving.url}/v1/chat/completions`, body);
    assert.equal(status, 200);
    assert.equal(reply["object"], "chat.completion");
  });

  test("has learned the form of a chat: it answers, thinks and stops", async () => {
    const content = "The owl is green. What colour is the owl?";
    const ask = (thinking: string): ReturnType<typeof post> =>
      post(`${serving.url}/v1/chat/completions`, {
        model: "tiny-chat",
        messages: [{ role: "user", content }],
        temperature: 0,
        thinking: { type: thinking },
      });
    const messageOf = ({ body }: Awaited<ReturnType<typeof post>>): Record<string, string> =>
      (body["choices"] as { message: Record<string, string> }[])[0]!.message;
    assert.equal(messageOf(await ask("disabled"))["content"], "The owl is green.");
    const thought = messageOf(await ask("enabled"));
    assert.equal(thought["content"], "The owl is green.");
    assert.equal(thought["reasoning_content"], "It says green.");
  });

  test("gives the same text in a stream and at once, whatever is asked", async () => {
    const seed = 9;
    const random = new Random(seed, "requests");
    const words = ["Hello!", "Say", "owl", "The cat is red.", "export", "interface", "🌍", "{"];
    for (let round = 0; round < 30; round++) {
      const content = Array.from(
        { length: 1 + random.below(6) },
        () => words[random.below(8)],
      ).join(" ");
      const request = {
        model: "tiny-chat",
        messages: [{ role: "user", content }],
        seed: round,
        temperature: random.below(3) / 2,
        max_tokens: 1 + random.below(30),
        ...(random.below(2) === 0 ? { stop: [["e", ".", "\n", "the"][random.below(4)]] } : {}),
        thinking: { type: random.below(2) === 0 ? "enabled" : "disabled" },
      };
      const path = `${serving.url}/v1/chat/completions`;
      const { body } = await post(path, request);
      const { message, finish_reason } = (
        body["choices"] as { message: object; finish_reason: string }[]
      )[0]!;
      const parts = { content: "", reasoning_content: "", finish_reason: "" };
      for (const chunk of await streamed(path, { ...request, stream: true })) {
        const [choice] = chunk["choices"] as {
          delta: { content?: string; reasoning_content?: string };
          finish_reason: string | null;
        }[];
        parts.content += choice!.delta.content ?? "";
        parts.reasoning_content += choice!.delta.reasoning_content ?? "";
        parts.finish_reason = choice!.finish_reason ?? parts.finish_reason;
      }
      const whole = { reasoning_content: "", ...message, finish_reason };
      assert.deepEqual(parts, pick(whole, parts), `seed ${seed}, round ${round}`);
    }
  });

  test("is talked to by hadal chat, and its log names no words of it", async () => {
    const chat = spawn(process.execPath, [
      HADAL,
      "chat",
      "--url",
      serving.url,
      "--temperature",
      "0",
    ]);
    using _ = leashed(chat);
    let said = "";
    chat.stdout.setEncoding("utf8").on("data", (part: string) => {
      said += part;
    });
    chat.stdin.end("Say whale.\n");
    assert.equal(await endOf(chat), 0);
    assert.match(said, /Whale\./);
    assert.doesNotMatch(serving.printed(), /whale/i);
  });
});

test("a second signal ends a server that still waits for its requests", async () => {
  using serving = await serve();
  const { child, url, printed } = serving;
  // A request whose body never comes; that it is being read, the server says with 100.
  const socket = connect(Number(new URL(url).port), "127.0.0.1");
  socket.on("error", () => {});
  socket.write(
    "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\ncontent-type: application/json\r\n" +
      "content-length: 9\r\nexpect: 100-continue\r\n\r\n",
  );
  await once(socket, "data");
  child.kill("SIGTERM");
  while (!printed().includes("still running: 1")) await once(child.stdout!, "data");
  child.kill("SIGTERM");
  assert.equal(await endOf(child), 143);
  socket.destroy();
});

test("a server finds on the disk what the one before it has read", async () => {
  const content = "The owl is green. ".repeat(30);
  const cached: number[] = [];
  for (const flags of [[], [], ["--prefix-cache-disk-bytes", "0"]]) {
    using serving = await serve(...flags);
    const { child, url } = serving;
    const request = { model: "tiny-chat", prompt: content, max_tokens: 1 };
    const { body } = await post(`${url}/v1/completions`, request);
    const { cached_tokens, disk_tokens } = cacheDetailsOf(body["usage"]);
    cached.push(cached_tokens);
    assert.equal(disk_tokens, cached_tokens);
    child.kill("SIGTERM");
    assert.equal(await endOf(child), 143);
  }
  assert.ok(cached[1]! >= 64, `${cached}`);
  assert.deepEqual(cached, [0, cached[1], 0]);
});

test("a request is told where it left a cached prompt, and what memory had of it", async () => {
  using serving = await serve("--prefix-cache-disk-bytes", "0");
  const { child, url } = serving;
  const first = Array.from({ length: 150 }, (_, index) => 300 + index);
  const second = first.with(80, 700);
  const ask = async (prompt: readonly number[]): Promise<CacheDetails> => {
    const request = { model: "tiny-chat", prompt, max_tokens: 1 };
    const { body } = await post(`${url}/v1/completions`, request);
    return cacheDetailsOf(body["usage"]);
  };
  const none = { cached_tokens: 0, disk_tokens: 0, near_miss: null };
  assert.deepEqual(await ask(first), none);
  const near_miss = { position: 80, cached_token: 380, given_token: 700 };
  assert.deepEqual(await ask(second), { cached_tokens: 64, disk_tokens: 0, near_miss });
  assert.deepEqual(await ask(first), { ...none, cached_tokens: 128 });
  const reply = await fetch(`${url}/v1/completions`, {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify({
      ...{ model: "tiny-chat", prompt: first.with(70, 600), max_tokens: 1 },
      ...{ stream: true, stream_options: { include_usage: true } },
    }),
  });
  const chunks = (await reply.text()).split("\n\n").filter((chunk) => chunk.includes('"usage":{'));
  const { usage } = JSON.parse(chunks.at(-1)!.slice("data: ".length)) as { usage: unknown };
  assert.deepEqual(cacheDetailsOf(usage).near_miss?.position, 70);
  child.kill("SIGTERM");
  assert.equal(await endOf(child), 143);
});

test("an address that others reach is refused without keys, with what to do", async () => {
  const words = ["serve", "--model", TINY_CHAT, "--port", "0", "--host", "0.0.0.0"];
  const child = spawn(process.execPath, [HADAL, ...words]);
  using _ = leashed(child);
  let text = "";
  child.stderr.on("data", (part: Buffer) => {
    text += part;
  });
  assert.notEqual(await endOf(child), 0);
  assert.match(text, /--host 0\.0\.0\.0 .* --keys FILE/);
});

interface CacheDetails {
  readonly cached_tokens: number;
  readonly disk_tokens: number;
  readonly near_miss: { readonly position: number } | null;
}

function cacheDetailsOf(usage: unknown): CacheDetails {
  return (usage as { prompt_tokens_details: CacheDetails }).prompt_tokens_details;
}

function pick<T extends object>(from: object, shape: T): Partial<T> {
  const names = Object.keys(shape);
  return Object.fromEntries(
    Object.entries(from).filter(([name]) => names.includes(name)),
  ) as Partial<T>;
}
