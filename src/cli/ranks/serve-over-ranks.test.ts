/**
 * @file `hadal serve` over two processes, in two roles and with experts on both, as a user runs it;
 * skipped where there is no Open MPI. What else ranks are asked to serve is refused.
 */
import assert from "node:assert/strict";
import { spawn, spawnSync } from "node:child_process";
import { randomUUID } from "node:crypto";
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import process from "node:process";
import { test } from "node:test";
import { fileURLToPath } from "node:url";
import { HADAL, skipWithoutMpi } from "./lost-ranks.fixture.ts";

const TINY_CHAT = fileURLToPath(new URL("../../../test/fixtures/tiny-chat", import.meta.url));
const SERVE = ["serve", "--model", TINY_CHAT, "--port", "0", "--prefix-cache-disk-bytes", "0"];
const ENV = { ...process.env, NO_COLOR: "1" };

interface Served extends AsyncDisposable {
  readonly address: string;
  /** By a signal to it, or because it ends anyway: all that it has printed. */
  end(signal?: NodeJS.Signals): Promise<string>;
  /** Process numbers of those who were started as this rank. */
  processesOf(rank: number): readonly number[];
}

/** A server by these words, once it answers. */
async function start(...words: readonly string[]): Promise<Served> {
  const mark = randomUUID();
  const env = { ...ENV, HADAL_TEST_MARK: mark };
  const child = spawn(process.execPath, [HADAL, ...words], { env });
  const ended = new Promise<void>((resolve) => child.once("close", () => resolve()));
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
  const end: Served["end"] = async (signal) => {
    if (signal !== undefined) child.kill(signal);
    await ended;
    return said;
  };
  return {
    address,
    end,
    [Symbol.asyncDispose]: async () => void (await end("SIGTERM")),
    processesOf: (rank) =>
      readdirSync("/proc")
        .filter((name) => /^\d+$/.test(name))
        .filter((name) => {
          const words = environmentOf(name);
          const wanted = [`HADAL_TEST_MARK=${mark}`, `OMPI_COMM_WORLD_RANK=${rank}`];
          return wanted.every((word) => words.includes(word));
        })
        .map(Number),
  };
}

/** Of a process; nothing of one that has ended, or of others. */
function environmentOf(name: string): readonly string[] {
  try {
    return readFileSync(join("/proc", name, "environ"), "utf8").split("\0");
  } catch {
    return [];
  }
}

async function estimateOf({ address }: Served): Promise<number> {
  const { data } = (await (await fetch(`${address}/v1/models`)).json()) as {
    readonly data: readonly [{ readonly estimated_bytes: number }];
  };
  return data[0].estimated_bytes;
}

async function complete(address: string, prompt: string): Promise<Record<string, unknown>> {
  const response = await fetch(`${address}/v1/completions`, {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify({
      ...{ model: "tiny-chat", prompt },
      max_tokens: 4,
      seed: 1,
      logprobs: 2,
    }),
  });
  assert.equal(response.status, 200);
  return (await response.json()) as Record<string, unknown>;
}

const LAUNCH = ["launch", "--ranks", "2", "--", "hadal", ...SERVE];
const PROMPT = "a long prompt ".repeat(40);

test("two processes serve one model, and a signal ends both in order", {
  skip: skipWithoutMpi,
}, async () => {
  await using server = await start(...LAUNCH, "--role", "split");
  const { usage } = await complete(server.address, PROMPT);
  assert.equal((usage as { completion_tokens: number }).completion_tokens, 4);
  const metrics = await (await fetch(`${server.address}/metrics`)).text();
  const own = Number(/^hadal_prompt_tokens_total\{.*\} (\d+)$/m.exec(metrics)?.[1]);
  assert.ok(own <= 64, `the rank that decodes has read ${own} tokens of the prompt`);
  assert.doesNotMatch(await server.end("SIGTERM"), /error/);
});

test("two processes share the experts of one model, whose answers are those of one", {
  skip: skipWithoutMpi,
}, async () => {
  const prompts = [PROMPT, "What", `The fox. ${PROMPT}`, "The owl is green. The fox"];
  const answersOf = async ({ address }: Served): Promise<unknown[]> => {
    const answers: unknown[] = [];
    for (const prompt of prompts) answers.push((await complete(address, prompt))["choices"]);
    return answers;
  };
  await using one = await start(...SERVE);
  const expected = await answersOf(one);
  const whole = await estimateOf(one);
  await one.end("SIGTERM");
  const words = ["--redundant-experts", "2", "--rebalance-tokens", "50"];
  await using server = await start(...LAUNCH, "--expert-ranks", "2", ...words);
  assert.deepEqual(await answersOf(server), expected);
  assert.ok((await estimateOf(server)) < whole, "this process keeps a part of the experts");
  const metrics = await (await fetch(`${server.address}/metrics`)).text();
  assert.match(metrics, /^hadal_expert_passes_total\{.*micro_batches="2"\} [1-9]/m);
  assert.match(metrics, /^hadal_expert_rank_load_over_mean\{.*rank="1"\} /m);
  assert.match(metrics, /^hadal_expert_moves_total\{.*\} [1-9]/m);
  assert.doesNotMatch(await server.end("SIGTERM"), /error/);
});

test("when a process that holds experts is killed, all end", {
  skip: skipWithoutMpi,
}, async () => {
  await using server = await start(...LAUNCH, "--expert-ranks", "2");
  await complete(server.address, "What");
  const [lost, ...others] = server.processesOf(1);
  assert.deepEqual(others, []);
  process.kill(lost!, "SIGKILL");
  assert.match(await server.end(), /exited on signal 9 \(Killed\)/);
  assert.deepEqual(server.processesOf(0), []);
});

test("ranks serve one model in two roles or with its experts divided, and nothing else", () => {
  const refusal = (size: string, ...words: readonly string[]): string =>
    spawnSync(process.execPath, [HADAL, ...SERVE, ...words], {
      encoding: "utf8",
      env: { ...ENV, OMPI_COMM_WORLD_SIZE: size },
    }).stderr;
  const remedy = "two with --role split can, and N with --expert-ranks N";
  const refused = (numRanks: number, given: string): RegExp =>
    new RegExp(`^error: serving over ${numRanks} ranks with ${given}: ${remedy}`);
  assert.match(refusal("2"), refused(2, "--role both"));
  assert.match(refusal("3", "--role", "split"), refused(3, "--role split"));
  assert.match(refusal("3", "--expert-ranks", "2"), refused(3, "--expert-ranks 2"));
  for (const words of [
    ["--role", "split"],
    ["--expert-ranks", "2"],
  ]) {
    const two = refusal("2", ...words, "--model", TINY_CHAT);
    assert.match(two, /^error: ranks serve one --model, not 2/);
  }
});
