/**
 * @file What HTTP costs: the same answers of an engine that takes no time, over HTTP and called
 * directly. The client's own time, in a process of its own, is in it.
 */

import { median } from "../../../base/median.ts";
import type { Engine } from "../../../inference/engine/api.ts";
import { readTokenizer } from "../../../training/run/checkpoint.ts";
import { benchRequest } from "./bench-request.ts";
import { CompletionClient } from "./completion-client.ts";
import { IdleEngine } from "./idle-engine.ts";
import type { ServeRow } from "./serve-row.ts";
import { ServerProcess } from "./server-process.ts";

const REQUESTS = 2000;
const WARM_REQUESTS = 500;
const STREAMS = 9;
const STREAM_TOKENS = 20_000;
const PROMPT = Array.from({ length: 32 }, (_, index) => 300 + index);

export async function measureOverhead(path: string): Promise<ServeRow[]> {
  const tokenizer = readTokenizer(path);
  await using server = await ServerProcess.start("./idle-server", [path]);
  const target = { url: server.url, model: "idle", eosId: tokenizer.eosId };
  using client = new CompletionClient(target);
  const ask = { prompt: PROMPT, seed: 1 };
  const requests: number[] = [];
  for (let index = 0; index < WARM_REQUESTS; index++) await client.whole({ ...ask, maxTokens: 1 });
  const warm = server.processorSeconds();
  for (let index = 0; index < REQUESTS; index++) {
    requests.push(await client.whole({ ...ask, maxTokens: 1 }));
  }
  const asked = server.processorSeconds();
  const streams: number[] = [];
  for (let index = 0; index <= STREAMS; index++) {
    const start = performance.now();
    const { completionTokens } = await client.stream({ ...ask, maxTokens: STREAM_TOKENS });
    streams.push((performance.now() - start) / completionTokens);
  }
  const streamed = server.processorSeconds();
  const engine = new IdleEngine(tokenizer, 2 ** 20);
  const [directRequest, directToken] = [
    await timeDirect(engine, { requests: REQUESTS, tokens: 1 }),
    (await timeDirect(engine, { requests: STREAMS, tokens: STREAM_TOKENS })) / STREAM_TOKENS,
  ];
  const perRequest = median(requests) - directRequest;
  const perToken = median(streams.slice(1)) - directToken;
  return [
    {
      name: "HTTP, a request",
      workload: `${REQUESTS} one after another`,
      value: 1000 * perRequest,
      unit: "µs",
      note: `over the engine called directly; ${share(asked, warm, REQUESTS)}`,
    },
    {
      name: "HTTP, a streamed token",
      workload: `${STREAMS} streams of ${STREAM_TOKENS}`,
      value: 1000 * perToken,
      unit: "µs",
      note: `the same; ${share(streamed, asked, (STREAMS + 1) * STREAM_TOKENS)}`,
    },
  ];
}

/** The server's part, which other programs on the machine change less. */
function share(until: number | null, from: number | null, count: number): string {
  if (until === null || from === null) return "client included";
  const micros = (1e6 * (until - from)) / count;
  return `client included; the server's processor time ${micros.toFixed(0)} µs`;
}

/** Milliseconds a request. */
async function timeDirect(
  engine: Engine,
  { requests, tokens }: { readonly requests: number; readonly tokens: number },
): Promise<number> {
  const request = benchRequest(PROMPT, {
    maxTokens: tokens,
    sampling: { temperature: 1, topP: 1, topK: 0, minP: 0 },
    adjustments: null,
    draft: "auto",
  });
  const { signal } = new AbortController();
  const times: number[] = [];
  for (let index = 0; index < requests; index++) {
    const start = performance.now();
    for await (const _ of engine.generate(request, signal));
    times.push(performance.now() - start);
  }
  return median(times);
}
