/** @file How much a long prompt that comes in holds up the streams that run. */
import { Random } from "../../../base/random.ts";
import type { CompletionClient } from "./completion-client.ts";
import type { LongPrompt } from "./first-token.ts";
import { quantile, type ServeRow } from "./serve-row.ts";
import { randomPrompt } from "./workloads.ts";

const STREAMS = 4;
const ROUNDS = 3;
const QUIET_MS = 3000;

export async function measureStall(
  client: CompletionClient,
  { tokens, vocabSize }: LongPrompt,
): Promise<ServeRow[]> {
  const random = new Random(2, "stall");
  const before: number[] = [];
  const during: number[] = [];
  const prompts: number[] = [];
  for (let round = 0; round < ROUNDS; round++) {
    const streams = openStreams(client, random, vocabSize, tokens);
    await streams.started;
    const quietFrom = performance.now();
    await new Promise((resolve) => setTimeout(resolve, QUIET_MS));
    const added = performance.now();
    const prompt = randomPrompt(random, vocabSize, tokens);
    const asked = { prompt, maxTokens: 1, seed: 1, reportsEveryToken: true };
    const { eventTimes } = await client.stream(asked);
    const read = eventTimes[0]!;
    streams.end();
    for (const times of await streams.times) {
      before.push(...gapsIn(times, quietFrom, added));
      during.push(...gapsIn(times, added, read));
    }
    prompts.push(read - added);
  }
  const [quiet, busy] = [quantile(before, 0.95), quantile(during, 0.95)];
  const name = "between tokens, p95";
  return [
    { name, workload: `${STREAMS} streams`, value: quiet, unit: "ms" },
    {
      name,
      workload: `${STREAMS} streams while ${tokens} tokens are read`,
      value: busy,
      unit: "ms",
      ratio: busy / quiet,
      of: "without",
      note:
        `reading took ${(quantile(prompts, 0.5) / 1000).toFixed(1)} s; ` +
        `median ${quantile(during, 0.5).toFixed(1)} ms (${quantile(before, 0.5).toFixed(1)} ` +
        `without), longest ${quantile(during, 1).toFixed(0)} ms`,
    },
  ];
}

interface Streams {
  /** Every stream has its first tokens. */
  readonly started: Promise<unknown>;
  end(): void;
  /** When each stream's tokens came. */
  readonly times: Promise<readonly (readonly number[])[]>;
}

function openStreams(
  client: CompletionClient,
  random: Random,
  vocabSize: number,
  maxTokens: number,
): Streams {
  const ending = new AbortController();
  const runs = Array.from({ length: STREAMS }, () => {
    const times: number[] = [];
    const { promise: started, resolve, reject } = Promise.withResolvers<void>();
    const prompt = randomPrompt(random, vocabSize, 64);
    const asked = { prompt, maxTokens, seed: 1, reportsEveryToken: true };
    const onToken = (): void => {
      times.push(performance.now());
      if (times.length === 8) resolve();
    };
    const ended = client.stream(asked, ending.signal, onToken).catch((error: unknown) => {
      if (!ending.signal.aborted) reject(error);
    });
    return { started, times: ended.then(() => times) };
  });
  return {
    started: Promise.all(runs.map(({ started }) => started)),
    end: () => ending.abort(),
    times: Promise.all(runs.map(({ times }) => times)),
  };
}

/** Times between neighbours that lie in a window. */
function gapsIn(times: readonly number[], from: number, to: number): number[] {
  const inside = times.filter((time) => time >= from && time <= to);
  return inside.slice(1).map((time, at) => time - inside[at]!);
}
