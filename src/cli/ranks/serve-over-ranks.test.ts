/**
 * @file `hadal serve --role split` over two processes, as a user runs it; skipped where there is no
 * Open MPI. What else ranks are asked to serve is refused.
 */
import assert from "node:assert/strict";
import { spawn, spawnSync } from "node:child_process";
import process from "node:process";
import { test } from "node:test";
import { fileURLToPath } from "node:url";
import { HADAL, skipWithoutMpi } from "./lost-ranks.fixture.ts";

const TINY_CHAT = fileURLToPath(new URL("../../../test/fixtures/tiny-chat", import.meta.url));
const SERVE = ["serve", "--model", TINY_CHAT, "--port", "0", "--prefix-cache-disk-bytes", "0"];
const ENV = { ...process.env, NO_COLOR: "1" };

test("two processes serve one model, and a signal ends both in order", {
  skip: skipWithoutMpi,
}, async () => {
  const words = [HADAL, "launch", "--ranks", "2", "--", "hadal", ...SERVE, "--role", "split"];
  const child = spawn(process.execPath, words, { env: ENV });
  const ended = new Promise<number | null>((resolve) => child.once("close", resolve));
  let said = "";
  const address = await new Promise<string>((resolve, reject) => {
    const hear = (data: unknown): void => {
      said += String(data);
      const [, found] = /at (http:\S+)/.exec(said) ?? [];
      if (found !== undefined) resolve(found);
    };
    child.stdout.on("data", hear);
    child.stderr.on("data", hear);
    void ended.then(() => reject(new Error(said)));
  });
  const prompt = "a long prompt ".repeat(40);
  const response = await fetch(`${address}/v1/completions`, {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify({ model: "tiny-chat", prompt, max_tokens: 4 }),
  });
  assert.equal(response.status, 200);
  const { usage } = (await response.json()) as { usage: { completion_tokens: number } };
  assert.equal(usage.completion_tokens, 4);
  const metrics = await (await fetch(`${address}/metrics`)).text();
  const own = Number(/^hadal_prompt_tokens_total\{.*\} (\d+)$/m.exec(metrics)?.[1]);
  assert.ok(own <= 64, `the rank that decodes has read ${own} tokens of the prompt`);
  child.kill("SIGTERM");
  await ended;
  assert.doesNotMatch(said, /error/);
});

test("ranks serve one model in two roles, and nothing else", () => {
  const refusal = (size: string, ...words: readonly string[]): string =>
    spawnSync(process.execPath, [HADAL, ...SERVE, ...words], {
      encoding: "utf8",
      env: { ...ENV, OMPI_COMM_WORLD_SIZE: size },
    }).stderr;
  assert.match(
    refusal("2"),
    /^error: serving over 2 ranks with --role both: two with --role split/,
  );
  assert.match(refusal("3", "--role", "split"), /^error: serving over 3 ranks with --role split/);
  const two = refusal("2", "--role", "split", "--model", TINY_CHAT);
  assert.match(two, /^error: two ranks serve one --model, not 2/);
});
