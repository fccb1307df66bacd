/**
 * @file llama.cpp's side of `hadal bench decode --against llama.cpp`: the small preset written as
 * GGUF and run by its own benchmark, `llama-bench`, beside ours.
 *
 * Both read the same prompt length and decode as many tokens after it, in processes that alternate,
 * with one thread and with two; a figure is the median of the processes' own medians, with the
 * number of threads that suits the side best. F16 stands
 * against our bf16, Q8_0 against int8 in groups of 32: as many bits. The peer is the
 * program built for this processor (bench/peers/build_llama_bench.sh), because the prebuilt library
 * of node-llama-cpp decodes several times slower. Refuses where there is no `llama-bench`.
 */
import { execFile } from "node:child_process";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { promisify } from "node:util";
import { OperationalError } from "../../base/errors.ts";
import { median } from "../../base/median.ts";
import { exportGguf, type GgufDtype } from "../../inference/export-gguf.ts";
import { openCpuDevice } from "../../kernels/cpu.ts";
import { Model } from "../../model/model.ts";
import { presetConfig } from "../../model/presets.ts";
import { learnedVocabulary, Tokenizer } from "../../tokenizer/tokenizer.ts";
import {
  DECODED_TOKENS,
  type DecodingTiming,
  decodingShape,
  PROMPT_TOKENS,
  SEED,
  VOCAB_SIZE,
} from "./model-cases.ts";
import { runDecodingApart } from "./processes.ts";
import type { BenchRow } from "./row.ts";

const PEER_SAMPLES = 5;
/** Runs of each test in one process of the peer. */
const PEER_RUNS = 3;
const THREADS = [1, 2] as const;

interface Comparison {
  /** As `--weights` has it. */
  readonly weights: "bf16" | "int8";
  readonly against: GgufDtype;
}

/** What one process measured with each number of threads. */
type Sample = readonly DecodingTiming[];

const COMPARED: readonly Comparison[] = [
  { weights: "bf16", against: "f16" },
  { weights: "int8", against: "q8_0" },
];

const run = promisify(execFile);

/** The comparison, row by row; `report` hears of each process that is about to start. */
export async function compareWithLlama(
  env: Readonly<Record<string, string | undefined>>,
  report: (done: number, total: number, text: string) => void,
): Promise<BenchRow[]> {
  const program = env["HADAL_LLAMA_BENCH"] ?? "llama-bench";
  await checkPeer(program);
  const folder = mkdtempSync(join(tmpdir(), "hadal-llama-"));
  try {
    const rows: BenchRow[] = [];
    const total = 2 * PEER_SAMPLES * COMPARED.length;
    for (const [index, comparison] of COMPARED.entries()) {
      const { weights, against } = comparison;
      const file = join(folder, `${against}.gguf`);
      await writeModel(file, against);
      const ours: Sample[] = [];
      const theirs: Sample[] = [];
      for (let sample = 0; sample < PEER_SAMPLES; sample++) {
        const done = 2 * (index * PEER_SAMPLES + sample);
        report(done, total, `llama.cpp ${against}`);
        theirs.push(await forThreads((threads) => runPeer(program, file, threads)));
        report(done + 1, total, `ours, ${weights}`);
        ours.push(await forThreads((threads) => runDecodingApart(weights, threads)));
      }
      rows.push(
        ...(["decode", "prompt"] as const).map((name) =>
          compare(name, comparison, { ours, theirs }),
        ),
      );
    }
    return rows;
  } finally {
    rmSync(folder, { recursive: true });
  }
}

async function forThreads(measure: (threads: number) => Promise<DecodingTiming>): Promise<Sample> {
  const sample: DecodingTiming[] = [];
  for (const threads of THREADS) sample.push(await measure(threads));
  return sample;
}

function compare(
  name: "decode" | "prompt",
  { weights, against }: Comparison,
  { ours, theirs }: Readonly<Record<"ours" | "theirs", readonly Sample[]>>,
): BenchRow {
  const bestOf = (samples: readonly Sample[]): { threads: number; speed: number } => {
    const speeds = THREADS.map((threads, index) => ({
      threads,
      speed: median(samples.map((sample) => sample[index]![`${name}TokensPerSecond`])),
    }));
    return speeds.reduce((best, each) => (each.speed > best.speed ? each : best));
  };
  const [mine, peers] = [bestOf(ours), bestOf(theirs)];
  return {
    name,
    shape: decodingShape(name, "small"),
    implementation: `x64 ×${mine.threads} ${weights}`,
    tokensPerSecond: mine.speed,
    against: `llama.cpp ×${peers.threads} ${against}`,
    ratio: mine.speed / peers.speed,
  };
}

async function checkPeer(program: string): Promise<void> {
  try {
    await run(program, ["--help"]);
  } catch {
    throw new OperationalError(
      "platform.peer",
      `no llama.cpp: ${program} does not run; bench/peers/build_llama_bench.sh builds it from a ` +
        "checkout of llama.cpp, and HADAL_LLAMA_BENCH says where it is if it is not on the path",
    );
  }
}

/**
 * The model that our side times, with a tokenizer of single bytes: its tokens are not looked at.
 */
async function writeModel(file: string, dtype: GgufDtype): Promise<void> {
  await using device = await openCpuDevice({ numThreads: 1 });
  const model = new Model(device, presetConfig("small", VOCAB_SIZE), {
    precision: "f32",
    seed: SEED,
    gradients: false,
  });
  const noMerges = { left: new Int32Array(0), right: new Int32Array(0) };
  exportGguf({ model, tokenizer: new Tokenizer(learnedVocabulary(noMerges)) }, file, dtype);
}

/** What is read of an entry of `llama-bench -o json`. */
interface PeerEntry {
  readonly n_gen: number;
  /** Tokens per second of each run. */
  readonly samples_ts: readonly number[];
}

async function runPeer(program: string, file: string, threads: number): Promise<DecodingTiming> {
  // Which attention is faster depends on the length of the context; both are tried.
  const attention = ["-fa", "0,1"];
  const common = ["-m", file, "-t", String(threads), "-r", String(PEER_RUNS), ...attention];
  const rate = async (args: readonly string[]): Promise<number> => {
    const { stdout } = await run(program, [...common, ...args, "-o", "json"]).catch(
      (error: Error) => {
        throw new OperationalError(
          "platform.peer",
          `${program} failed: ${error.message}`,
          {},
          error,
        );
      },
    );
    const entries = JSON.parse(stdout) as PeerEntry[];
    return Math.max(...entries.map(({ samples_ts }) => median(samples_ts)));
  };
  return {
    promptTokensPerSecond: await rate(["-p", String(PROMPT_TOKENS), "-n", "0"]),
    decodeTokensPerSecond: await rate([
      ...["-p", "0", "-n", String(DECODED_TOKENS)],
      ...["-d", String(PROMPT_TOKENS)],
    ]),
  };
}
