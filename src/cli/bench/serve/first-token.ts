/**
 * @file The time to the first token of a long prompt: never seen, seen, seen by a server before.
 */

import { median } from "../../../base/median.ts";
import { Random } from "../../../base/random.ts";
import { type Asked, CompletionClient, type Target } from "./completion-client.ts";
import type { ServeRow } from "./serve-row.ts";
import type { ServerProcess } from "./server-process.ts";
import { randomPrompt } from "./workloads.ts";

const PROMPTS = 3;

export interface LongPrompt {
  readonly tokens: number;
  readonly vocabSize: number;
}

/** Rows for cold, warm and restarted; `restart` ends the server and starts it anew. */
export async function measureFirstToken(
  target: Target,
  { tokens, vocabSize }: LongPrompt,
  restart: () => Promise<ServerProcess>,
): Promise<ServeRow[]> {
  const random = new Random(1, "long prompts");
  const prompts = Array.from({ length: PROMPTS }, () => randomPrompt(random, vocabSize, tokens));
  const [cold, warm] = await withClient(target, async (client) => {
    const times: [number, number][] = [];
    // One at a time, cold then warm: each pair of figures has the same neighbours.
    for (const prompt of prompts) {
      times.push([await firstTokenMs(client, prompt), await firstTokenMs(client, prompt)]);
    }
    return [median(times.map(([first]) => first)), median(times.map(([, second]) => second))];
  });
  const restarted: number[] = [];
  for (const prompt of prompts) {
    await using server = await restart();
    await withClient({ ...target, url: server.url }, async (client) => {
      // Something else first, so that what is compiled and allocated at first use is not timed.
      await firstTokenMs(client, prompt.slice(0, 8).reverse());
      restarted.push(await firstTokenMs(client, prompt));
    });
  }
  const workload = `prompt of ${tokens} tokens`;
  const row = (name: string, value: number, note: string): ServeRow => {
    const ratio = name === "cold" ? {} : { ratio: cold / value, of: "as fast as cold" };
    return { name: `first token, ${name}`, workload, value, unit: "ms", ...ratio, note };
  };
  return [
    row("cold", cold, ""),
    row("warm", warm, ""),
    row("restarted", median(restarted), "the first request after the server was started again"),
  ];
}

async function firstTokenMs(client: CompletionClient, prompt: Asked["prompt"]): Promise<number> {
  const asked = { prompt, maxTokens: 1, seed: 1, reportsEveryToken: true };
  const { askedAt, eventTimes } = await client.stream(asked);
  return eventTimes[0]! - askedAt;
}

async function withClient<T>(
  target: Target,
  work: (client: CompletionClient) => Promise<T>,
): Promise<T> {
  using client = new CompletionClient(target);
  return await work(client);
}
