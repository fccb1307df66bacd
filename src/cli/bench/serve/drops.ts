/** @file Clients that connect and drop, ten thousand times: what they leave behind. */
import { connect } from "node:net";
import { Random } from "../../../base/random.ts";
import { CompletionClient, type Target } from "./completion-client.ts";
import type { ServeRow } from "./serve-row.ts";
import type { ServerProcess } from "./server-process.ts";
import { randomPrompt } from "./workloads.ts";

const DROPS = 10_000;
const AT_ONCE = 50;
const WAIT_MS_MAX = 40;
const SETTLE_MS = 20_000;

export async function measureDrops(
  target: Target,
  server: ServerProcess,
  { vocabSize, contextTokens }: { readonly vocabSize: number; readonly contextTokens: number },
): Promise<ServeRow> {
  const random = new Random(4, "drops");
  using client = new CompletionClient(target);
  const before = server.residentBytes();
  for (let done = 0; done < DROPS; done += AT_ONCE) {
    await Promise.all(
      Array.from({ length: AT_ONCE }, () => connectAndDrop(target, random, vocabSize)),
    );
  }
  const left = await settle(client);
  const after = server.residentBytes();
  // All blocks but those of prefixes, which make room, are free: so the longest request fits.
  const prompt = randomPrompt(random, vocabSize, contextTokens - 2);
  await client.stream({ prompt, maxTokens: 1, seed: 1 });
  const grown =
    before === null || after === null
      ? "resident memory is not known here"
      : `${((after - before) / 2 ** 20).toFixed(0)} MiB more resident`;
  return {
    name: "connect and drop",
    workload: `${DROPS} clients, ${AT_ONCE} at once`,
    value: left,
    unit: "left",
    note: `requests, sockets and bytes of bodies together; ${grown}; a whole context still fits`,
  };
}

/** A request cut anywhere, or whole and left while it is answered. */
function connectAndDrop({ url, model }: Target, random: Random, vocabSize: number): Promise<void> {
  const prompt = randomPrompt(random, vocabSize, 1 + random.below(200));
  const body = JSON.stringify({ model, prompt, max_tokens: 200, stream: random.below(2) === 0 });
  const whole =
    "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\ncontent-type: application/json\r\n" +
    `content-length: ${body.length}\r\n\r\n${body}`;
  const cut = random.below(2) === 0 ? random.below(whole.length) : whole.length;
  const waitMs = random.below(WAIT_MS_MAX);
  return new Promise((resolve) => {
    const socket = connect(Number(new URL(url).port), "127.0.0.1");
    socket.on("error", () => {});
    socket.on("close", () => resolve());
    socket.write(whole.slice(0, cut));
    setTimeout(() => socket.destroy(), waitMs);
  });
}

/** Waits until nothing of what was dropped is left, or no longer; what is left. */
async function settle(client: CompletionClient): Promise<number> {
  const names = [
    "num_requests_running",
    "num_requests_waiting",
    "http_request_body_bytes",
    "http_connections_open",
  ];
  const end = performance.now() + SETTLE_MS;
  for (;;) {
    // The last is sockets, and the one of this very question is left behind by nobody.
    const left = (await client.metrics(names)).reduce((sum, count) => sum + count, -1);
    if (left === 0 || performance.now() > end) return left;
    await new Promise((resolve) => setTimeout(resolve, 200));
  }
}
