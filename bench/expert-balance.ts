/**
 * @file Experts placed by their load, measured: two ranks on threads train a model whose gates
 * prefer six of sixteen experts that all begin on one rank.
 *
 *     node bin/node24.js bench/expert-balance.ts [recipe] [redundant experts] [steps]
 *
 * The busiest rank's processor time is what bounds the speed where every rank has a core of its
 * own; on a machine that others use the clock tells less.
 */
import process from "node:process";
import { runOnThreads } from "../src/parallel/communicator/threads/run-on-threads.ts";
import type { BalanceInput, BalanceReport } from "./expert-balance-ranks.ts";

const [recipe = "bf16", numRedundant = "4", steps = "5"] = process.argv.slice(2);
const input = { recipe, numRedundant: Number(numRedundant), steps: Number(steps) } as BalanceInput;
const program = new URL("./expert-balance-ranks.ts", import.meta.url);
const run = { numRanks: 2, program, input, watchdogMs: 120_000 };
const reports = (await runOnThreads(run)) as BalanceReport[];
const { tokensPerStep, pause, bytesMoved, losses, balances } = reports[0]!;

const median = (values: readonly number[]): number =>
  values.toSorted((a, b) => a - b)[Math.floor(values.length / 2)]!;
for (const phase of ["before", "after"] as const) {
  const imbalance = Math.max(...balances.map(({ [phase]: value }) => value));
  const wall = median(reports[0]![phase].map((time) => time.wall));
  const busy = reports.map((report) => median(report[phase].map((time) => time.busy)));
  const speeds = [tokensPerStep / wall, tokensPerStep / Math.max(...busy)];
  const [measured, floor] = speeds.map((speed) => speed.toFixed(0).padStart(6));
  process.stdout.write(
    `${phase.padEnd(6)}  ${measured} tokens/s  ${floor} by the busiest rank's processor time ` +
      `(${busy.map((seconds) => seconds.toFixed(2)).join(" and ")} s a step)  ` +
      `max/mean ${imbalance.toFixed(2)}\n`,
  );
}
const moves = balances.reduce((sum, { numMoves }) => sum + numMoves, 0);
const megabytes = (bytesMoved / 1e6).toFixed(1);
const milliseconds = (1000 * pause).toFixed(1);
process.stdout.write(`${moves} experts, ${megabytes} MB moved in ${milliseconds} ms\n`);
process.stdout.write(`loss of one batch ${losses[0]}, then ${losses[1]}\n`);
