/**
 * @file `hadal bench`: kernels, training steps, decoding, serving, ranks, in processes of their
 * own.
 */
import { loadavg } from "node:os";
import { OperationalError } from "../../base/errors.ts";
import { KERNEL_CASES } from "../bench/kernel-cases.ts";
import { compareWithLlama } from "../bench/llama-peer.ts";
import { MODEL_CASES } from "../bench/model-cases.ts";
import { benchParallel } from "../bench/parallel/run.ts";
import { measurePeaksApart, runCaseApart } from "../bench/processes.ts";
import { type BenchRow, benchTable } from "../bench/row.ts";
import { benchServe } from "../bench/serve/run.ts";
import { serveTable } from "../bench/serve/serve-row.ts";
import { compareWithTorch } from "../bench/torch-peer.ts";
import type { bench } from "../declarations/bench.ts";
import type { Run } from "../verb.ts";

/** Above this, others use the machine and the figures say more about them. */
const QUIET_LOAD = 1;

export const run: Run<typeof bench> = async ({ what, against, trained }, { output, env }) => {
  const load = loadavg()[0] ?? 0;
  if (load > QUIET_LOAD) {
    output.warn(`the machine is busy (load ${load.toFixed(1)}); read ratios, not absolutes`);
  }
  if (against !== undefined) {
    const goesWith = against === "torch" ? "train" : "decode";
    if (what !== goesWith) {
      throw new OperationalError(
        "usage.flags",
        `--against ${against} goes with ${goesWith}, not with ${what}: ` +
          `hadal bench ${goesWith} --against ${against}`,
      );
    }
    const report = (done: number, total: number, text: string): void =>
      output.progress({ done, total, text });
    const rows =
      against === "torch" ? await compareWithTorch(report) : await compareWithLlama(env, report);
    output.table(benchTable(rows));
    output.result(rows);
    return;
  }
  if (what === "serve") {
    const rows = await benchServe({ trained, output, env });
    output.table(serveTable(rows));
    output.result(rows);
    return;
  }
  if (trained !== undefined) {
    const message = `--trained ${trained} goes with serve, not with ${what}`;
    throw new OperationalError("usage.flags", `${message}: hadal bench serve --trained ${trained}`);
  }
  if (what === "parallel") {
    const rows = await benchParallel((done, total, text) => output.progress({ done, total, text }));
    output.table(benchTable(rows));
    output.result(rows);
    return;
  }
  const kind = what === "kernels" ? "kernels" : "model";
  const cases = chooseCases(what);
  const peaks = await measurePeaksApart();
  const rows: BenchRow[] = [];
  for (const [done, { index, name }] of cases.entries()) {
    output.progress({ done, total: cases.length, text: name });
    rows.push(await runCaseApart(kind, index, peaks));
  }
  const compared = compareTargets(rows);
  output.table(benchTable(compared));
  output.result(compared);
};

/** Machine code beside WebAssembly, where both were measured: how many times as fast. */
function compareTargets(rows: readonly BenchRow[]): BenchRow[] {
  return rows.map((row) => {
    if (row.against !== undefined) return row;
    const [target, threads] = row.implementation.split(" ");
    const other = rows.find(
      ({ name, shape, implementation }) =>
        name === row.name && shape === row.shape && implementation === `wasm ${threads}`,
    );
    const rate = row.gflops ?? row.gbytesPerSecond;
    const otherRate = other?.gflops ?? other?.gbytesPerSecond;
    if (target !== "x64" || rate === undefined || otherRate === undefined) return row;
    return { ...row, against: "wasm", ratio: rate / otherRate };
  });
}

function chooseCases(what: "kernels" | "train" | "decode"): { index: number; name: string }[] {
  if (what === "kernels")
    return KERNEL_CASES.map(({ name, shape }, index) => ({ index, name: `${name} ${shape}` }));
  return MODEL_CASES.map(({ name, preset }, index) => ({
    index,
    name: `${name} ${preset}`,
  })).filter(({ name }) => name.startsWith("train") === (what === "train"));
}
