/** @file `hadal bench parallel`: what ranks gain, and what the executor of pipelines costs. */

import { median } from "../../../base/median.ts";
import { siblingModule } from "../../../base/modules.ts";
import { runOnThreads } from "../../../parallel/communicator/threads/run-on-threads.ts";
import type { BenchRow } from "../row.ts";
import type { ParallelCase, ParallelTimes } from "./parallel-ranks.ts";

const CASES: readonly ParallelCase[] = [
  { preset: "small", recipe: "bf16" },
  { preset: "small", recipe: "fp8" },
  { preset: "tiny", recipe: "bf16" },
];

/** Rows of every case; ratios are medians over rounds in which both sides took a turn. */
export async function benchParallel(
  onProgress: (done: number, total: number, text: string) => void,
): Promise<BenchRow[]> {
  const rows: BenchRow[] = [];
  for (const [done, input] of CASES.entries()) {
    onProgress(done, CASES.length, `${input.preset} ${input.recipe}`);
    const program = siblingModule("./parallel-ranks", import.meta.url);
    const times = await runOnThreads({ numRanks: 2, program, input });
    rows.push(...rowsOf(input, times[0] as ParallelTimes));
  }
  return rows;
}

function rowsOf({ preset, recipe }: ParallelCase, times: ParallelTimes): BenchRow[] {
  const { alone, together, bare, executed, tokensPerStep } = times;
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
