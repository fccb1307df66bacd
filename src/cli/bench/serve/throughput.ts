/** @file Tokens a second of a server that a fixed number of clients keep busy. */
import { counted } from "../../../base/counted.ts";
import type { CompletionClient } from "./completion-client.ts";
import { quantile, type ServeRow } from "./serve-row.ts";
import { Requests, type Workload } from "./workloads.ts";

export interface LoadOptions {
  readonly workload: Workload;
  readonly streams: number;
  readonly vocabSize: number;
  readonly seconds: number;
  readonly seed: number;
}

interface Load {
  /** Tokens that came in the window, a second. */
  readonly tokensPerSecond: number;
  readonly firstTokenMs: readonly number[];
  readonly gapsMs: readonly number[];
  readonly cachedTokens: number;
  readonly promptTokens: number;
}

/** How often it is looked for the first whole answer, where none came in time. */
const PATIENCE_MS = 100;

/**
 * Every client asks, reads its answer and asks again, until the time is over and one answer came.
 */
async function runLoad(client: CompletionClient, options: LoadOptions): Promise<Load> {
  const { streams, seconds, workload, vocabSize, seed } = options;
  const ending = new AbortController();
  const firstTokenMs: number[] = [];
  const gapsMs: number[] = [];
  let [events, eventsOfWhole, tokensOfWhole, cachedTokens, promptTokens] = [0, 0, 0, 0, 0];
  const runClient = async (index: number): Promise<void> => {
    const requests = new Requests(workload, vocabSize, seed, index);
    while (!ending.signal.aborted) {
      const asked = requests.next();
      const streamed = await client.stream(asked, ending.signal, () => events++);
      const { askedAt, eventTimes } = streamed;
      if (eventTimes.length > 0) firstTokenMs.push(eventTimes[0]! - askedAt);
      gapsMs.push(...eventTimes.slice(1).map((time, at) => time - eventTimes[at]!));
      eventsOfWhole += eventTimes.length;
      tokensOfWhole += streamed.completionTokens;
      cachedTokens += streamed.cachedTokens;
      promptTokens += asked.prompt.length;
    }
  };
  const start = performance.now();
  const endOnceAnswered = (): void => {
    if (tokensOfWhole > 0) ending.abort();
    else timer = setTimeout(endOnceAnswered, PATIENCE_MS);
  };
  let timer = setTimeout(endOnceAnswered, seconds * 1000);
  let failure: unknown;
  const clients = Array.from({ length: streams }, async (_, index) => {
    try {
      await runClient(index);
    } catch (error) {
      if (!ending.signal.aborted) failure = error;
      ending.abort();
    }
  });
  await Promise.all(clients);
  clearTimeout(timer);
  if (failure !== undefined) throw failure;
  const elapsed = (performance.now() - start) / 1000;
  // A token whose character is not complete has no event of its own.
  const tokens = events * (tokensOfWhole / eventsOfWhole);
  const tokensPerSecond = tokens / elapsed;
  return { tokensPerSecond, firstTokenMs, gapsMs, cachedTokens, promptTokens };
}

/** `single` is the decode speed of one stream, the engine called directly. */
export async function measureThroughput(
  client: CompletionClient,
  options: LoadOptions,
  single: number,
): Promise<ServeRow> {
  const load = await runLoad(client, options);
  const { firstTokenMs, gapsMs } = load;
  const cached = (100 * load.cachedTokens) / load.promptTokens;
  const { streams, workload } = options;
  const ms = (values: readonly number[], share: number): string =>
    `${quantile(values, share).toFixed(1)} ms (p${100 * share})`;
  return {
    name: "throughput",
    workload: `${workload}, ${counted(streams, "stream")}`,
    value: load.tokensPerSecond,
    unit: "tokens/s",
    ratio: load.tokensPerSecond / single,
    of: "one stream's decoding",
    note:
      `first token ${ms(firstTokenMs, 0.5)}, between tokens ${ms(gapsMs, 0.5)} ` +
      `${ms(gapsMs, 0.95)}, ${cached.toFixed(0)} % of prompts cached`,
  };
}
