/**
 * @file `hadal bench serve`: the real server in a process of its own, and clients that ask it.
 *
 * Server and clients share the machine, as they do on a desk: on two cores the engine's threads,
 * the thread of HTTP and this load generator take turns.
 */
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { readModelConfig, readTokenizer } from "../../../training/run/checkpoint.ts";
import { resolveCheckpoint } from "../../../training/run/run-folder.ts";
import type { Context } from "../../verb.ts";
import { writeBenchModel } from "./bench-model.ts";
import { CompletionClient, type Target } from "./completion-client.ts";
import { measureDrafts, measureSingleStream } from "./direct.ts";
import { measureDrops } from "./drops.ts";
import { measureFirstToken } from "./first-token.ts";
import { measureOverhead } from "./overhead.ts";
import type { ServeRow } from "./serve-row.ts";
import { ServerProcess } from "./server-process.ts";
import { measureStall } from "./stall.ts";
import { measureThroughput } from "./throughput.ts";
import type { Workload } from "./workloads.ts";

const LONG_PROMPT = 8192;
/** The longest prompt leaves room for an answer. */
const ROOM = 256;
const SECONDS = 8;
const LOADS: readonly (readonly [Workload, number])[] = [
  ["chat", 1],
  ["chat", 8],
  ["chat", 32],
  ["system", 8],
  ["agent", 8],
];

export interface ServeBench extends Pick<Context, "output" | "env"> {
  /** A model whose drafts are measured. */
  readonly trained: string | undefined;
}

/** All rows. */
export async function benchServe({
  trained,
  output,
  env,
}: ServeBench): Promise<readonly ServeRow[]> {
  const folder = mkdtempSync(join(tmpdir(), "hadal-bench-serve-"));
  const rows: ServeRow[] = [];
  const steps = 8;
  let done = 0;
  const begin = (text: string): void => output.progress({ done: done++, total: steps, text });
  try {
    const path = join(folder, "bench");
    begin("a model with random weights");
    await writeBenchModel(path);
    begin("one stream, no HTTP");
    const single = await measureSingleStream(path, env);
    rows.push(single);
    rows.push(...(await measureServer(path, single.value!, begin)));
    begin("HTTP alone");
    rows.push(...(await measureOverhead(path)));
    begin("drafts");
    rows.push(trained === undefined ? NOT_TRAINED : await measureDrafts(trained, env));
    return rows;
  } finally {
    output.endProgress();
    rmSync(folder, { recursive: true, force: true });
  }
}

const NOT_TRAINED: ServeRow = {
  name: "one stream, drafting",
  workload: "greedy",
  value: null,
  unit: "tokens/s",
  note: "drafts of random weights are worth nothing; name a model with --trained",
};

/** The rows of one running server. */
async function measureServer(
  path: string,
  single: number,
  begin: (text: string) => void,
): Promise<ServeRow[]> {
  const { vocabSize, eosId } = readTokenizer(path);
  const { maxPositionEmbeddings: contextTokens } = readModelConfig(resolveCheckpoint(path));
  let folder = "";
  const start = (): Promise<ServerProcess> =>
    ServerProcess.serve("--model", path, "--prefix-cache-dir", folder);
  const rows: ServeRow[] = [];
  const long = { tokens: Math.min(LONG_PROMPT, contextTokens - ROOM), vocabSize };
  const measure = async (
    text: string,
    work: (target: Target, server: ServerProcess) => Promise<readonly ServeRow[]>,
  ): Promise<void> => {
    begin(text);
    // A server and a cache of its own: what one measurement leaves behind is not in the next.
    folder = join(dirname(path), `prefixes-${rows.length}`);
    await using server = await start();
    rows.push(...(await work({ url: server.url, model: "bench", eosId }, server)));
  };
  await measure("throughput", async (target) => {
    using client = new CompletionClient(target);
    const measured: ServeRow[] = [];
    for (const [workload, streams] of LOADS) {
      const load = { workload, streams, vocabSize, seconds: SECONDS, seed: streams };
      measured.push(await measureThroughput(client, load, single));
    }
    return measured;
  });
  await measure("first token", (target) => measureFirstToken(target, long, start));
  await measure("a long prompt beside streams", async (target) => {
    using client = new CompletionClient(target);
    return await measureStall(client, long);
  });
  await measure("connect and drop", async (target, server) => [
    await measureDrops(target, server, { vocabSize, contextTokens }),
  ]);
  return rows;
}
