/**
 * @file Experts placed by their load, measured: two ranks on threads train a model whose gates
 * prefer six of sixteen experts that all begin on one rank.
 *
 *     node bin/node24.js bench/expert-balance.ts [recipe] [redundant experts] [steps]
 */
import process from "node:process";
import { runOnThreads } from "../src/parallel/communicator/threads/run-on-threads.ts";
import type { BalanceInput, BalanceReport } from "./expert-balance-ranks.ts";

const [recipe = "bf16", numRedundant = "4", steps = "5"] = process.argv.slice(2);
const input = { recipe, numRedundant: Number(numRedundant), steps: Number(steps) } as BalanceInput;
const program = new URL("./expert-balance-ranks.ts", import.meta.url);
const run = { numRanks: 2, program, input, watchdogMs: 120_000 };
const [report] = (await runOnThreads(run)) as BalanceReport[];
const { tokensPerStep, secondsBefore, secondsAfter, pause, bytesMoved, losses, balances } = report!;

const median = (values: readonly number[]): number =>
  values.toSorted((a, b) => a - b)[Math.floor(values.length / 2)]!;
const worst = (pick: "before" | "after"): number =>
  Math.max(...balances.map(({ [pick]: value }) => value));
const rows = [
  ["before", secondsBefore, worst("before")],
  ["after", secondsAfter, worst("after")],
] as const;
for (const [name, seconds, imbalance] of rows) {
  const speed = (tokensPerStep / median(seconds)).toFixed(0).padStart(6);
  process.stdout.write(`${name.padEnd(6)}  ${speed} tokens/s  max/mean ${imbalance.toFixed(2)}\n`);
}
const moves = balances.reduce((sum, { numMoves }) => sum + numMoves, 0);
const megabytes = (bytesMoved / 1e6).toFixed(1);
const milliseconds = (1000 * pause).toFixed(1);
process.stdout.write(`${moves} experts, ${megabytes} MB moved in ${milliseconds} ms\n`);
process.stdout.write(`loss of one batch ${losses[0]}, then ${losses[1]}\n`);
