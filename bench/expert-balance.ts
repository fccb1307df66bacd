/**
 * @file Experts placed by their load, measured: two ranks on threads, of one kernel thread each,
 * train a model whose gates prefer six of sixteen experts that all begin on one rank.
 *
 *     node bin/node24.js bench/expert-balance.ts [recipe] [redundant experts] [rounds]
 *
 * Two equal models take a step in turns, one whose experts stay and one whose experts have moved.
 */
import process from "node:process";
import { median } from "../src/base/median.ts";
import { runOnThreads } from "../src/parallel/communicator/threads/run-on-threads.ts";
import type { BalanceInput, BalanceReport } from "./expert-balance-ranks.ts";

const [recipe = "bf16", numRedundant = "4", rounds = "9"] = process.argv.slice(2);
const input = {
  recipe,
  numRedundant: Number(numRedundant),
  rounds: Number(rounds),
} as BalanceInput;
const program = new URL("./expert-balance-ranks.ts", import.meta.url);
const run = { numRanks: 2, program, input, watchdogMs: 120_000 };
const reports = (await runOnThreads(run)) as BalanceReport[];
const { tokensPerStep, pause, bytesMoved, losses, balances, ...times } = reports[0]!;

for (const [phase, balance] of [
  ["staying", "before"],
  ["moved", "after"],
] as const) {
  const imbalance = Math.max(...balances.map(({ [balance]: value }) => value));
  const speed = tokensPerStep / median(times[phase].map(({ wall }) => wall));
  const busy = reports.map((report) => median(report[phase].map((time) => time.busy)));
  const seconds = busy.map((one) => one.toFixed(2)).join(" and ");
  process.stdout.write(
    `${phase.padEnd(8)} max/mean ${imbalance.toFixed(2)}  ${speed.toFixed(0).padStart(6)} ` +
      `tokens/s, ranks compute ${seconds} s a step\n`,
  );
}
const gains = times.staying.map(({ wall }, round) => wall / times.moved[round]!.wall);
const [least, most] = [Math.min(...gains), Math.max(...gains)];
process.stdout.write(
  `${median(gains).toFixed(2)} times the tokens/s (rounds from ${least.toFixed(2)} to ` +
    `${most.toFixed(2)})\n`,
);
const moves = balances.reduce((sum, { numMoves }) => sum + numMoves, 0);
const megabytes = (bytesMoved / 1e6).toFixed(1);
const milliseconds = (1000 * pause).toFixed(1);
process.stdout.write(`${moves} experts, ${megabytes} MB moved in ${milliseconds} ms\n`);
process.stdout.write(`loss of one batch ${losses[0]}, then ${losses[1]}\n`);
