/**
 * @file `hadal bench parallel`: what ranks gain, what the executor of pipelines costs, and what of
 * an exchange it leaves to wait for.
 */
import { median } from "../../../base/median.ts";
import { siblingModule } from "../../../base/modules.ts";
import { runOnThreads } from "../../../parallel/communicator/threads/run-on-threads.ts";
import type { BenchRow } from "../row.ts";
import type { OverlapCase, OverlapTimes } from "./overlap-ranks.ts";
import type { ParallelCase, ParallelTimes } from "./parallel-ranks.ts";

const CASES: readonly ParallelCase[] = [
  { preset: "small", recipe: "bf16" },
  { preset: "small", recipe: "fp8" },
  { preset: "tiny", recipe: "bf16" },
];

const OVERLAP_CASES: readonly OverlapCase[] = [
  { preset: "small", recipe: "bf16" },
  { preset: "small", recipe: "fp8" },
];

/** Rows of every case; ratios are medians over rounds in which both sides took a turn. */
export async function benchParallel(
  onProgress: (done: number, total: number, text: string) => void,
): Promise<BenchRow[]> {
  const rows: BenchRow[] = [];
  const total = CASES.length + OVERLAP_CASES.length;
  for (const [done, input] of CASES.entries()) {
    onProgress(done, total, `${input.preset} ${input.recipe}`);
    const program = siblingModule("./parallel-ranks", import.meta.url);
    const times = await runOnThreads({ numRanks: 2, program, input });
    rows.push(...rowsOf(input, times[0] as ParallelTimes));
  }
  for (const [done, input] of OVERLAP_CASES.entries()) {
    onProgress(CASES.length + done, total, `exchange, ${input.preset} ${input.recipe}`);
    const program = siblingModule("./overlap-ranks", import.meta.url);
    const times = await runOnThreads({ numRanks: 2, program, input });
    rows.push(...overlapRows(input, times[0] as OverlapTimes));
  }
  return rows;
}

function overlapRows({ preset, recipe }: OverlapCase, times: OverlapTimes): BenchRow[] {
  const { apart, pair, slowApart, slowPair, tokensPerPair } = times;
  const row = (implementation: string, milliseconds: readonly number[]): BenchRow => ({
    name: "F and B",
    shape: `${preset}, ${times.shape}`,
    implementation: `${implementation} ×1 ${recipe}`,
    tokensPerSecond: (1000 * tokensPerPair) / median(milliseconds),
  });
  const exposed = pair.map(
    (together, round) => (slowPair[round]! - together) / (slowApart[round]! - apart[round]!),
  );
  return [
    row("apart", apart),
    row("apart, slow link", slowApart),
    row("F&B pair", pair),
    { ...row("F&B pair, slow link", slowPair), against: "its wait apart", ratio: median(exposed) },
  ];
}

function rowsOf({ preset, recipe }: ParallelCase, times: ParallelTimes): BenchRow[] {
  const { alone, both, together, bare, executed, tokensPerStep } = times;
  const shape = `${preset}, ${times.shape}`;
  const row = (name: string, implementation: string, seconds: readonly number[]): BenchRow => ({
    name,
    shape,
    implementation: `${implementation} ×1 ${recipe}`,
    tokensPerSecond: tokensPerStep / median(seconds),
  });
  return [
    row("train step", "1 rank", alone),
    {
      ...row(
        "train step",
        "each of 2 by itself",
        both.map((seconds) => seconds / 2),
      ),
      against: "1 rank",
      ratio: median(alone.map((seconds, round) => (2 * seconds) / both[round]!)),
    },
    {
      ...row("train step", "2 ranks", together),
      against: "1 rank",
      ratio: median(alone.map((seconds, round) => seconds / together[round]!)),
    },
    row("gradients", "in a row", bare),
    {
      ...row("gradients", "executor", executed),
      against: "in a row",
      ratio: median(bare.map((seconds, round) => seconds / executed[round]!)),
    },
  ];
}
