/**
 * @file `hadal doctor`: what this machine runs and why, whether it computes rightly, and how fast.
 */
import { readFileSync } from "node:fs";
import { availableParallelism, cpus, totalmem } from "node:os";
import { counted } from "../../base/counted.ts";
import { OperationalError } from "../../base/errors.ts";
import { cpuOptionsFromEnvironment } from "../../device/cpu/cpu-device.ts";
import { createNativeRuntime } from "../../device/cpu/native.ts";
import type { Device } from "../../device/device.ts";
import {
  CONFORMANCE_CASES,
  ConformanceBench,
  type ConformanceFailure,
} from "../../kernels/conformance/conformance.ts";
import { openCpuDevice } from "../../kernels/cpu.ts";
import { ROWS_SHAPE } from "../bench/kernel-case.ts";
import { KERNEL_CASES } from "../bench/kernel-cases.ts";
import type { Peaks } from "../bench/peaks.ts";
import { measurePeaksApart, runCaseApart } from "../bench/processes.ts";
import { type BenchRow, benchTable } from "../bench/row.ts";
import type { doctor } from "../declarations/doctor.ts";
import type { Output } from "../output.ts";
import type { Run } from "../verb.ts";

/** Fixed, so that a report can be repeated; the test suite draws other ones. */
const SEED = 20260101;
/**
 * The quick look: one product of each kind and the row kernels. `hadal bench kernels` has them all.
 */
const QUICK_SHAPES = new Set(["1024×1024×1024", ROWS_SHAPE]);

export const run: Run<typeof doctor> = async (_values, { output, env }) => {
  const options = cpuOptionsFromEnvironment(env);
  await using device = await openCpuDevice(options);
  describeMachine(output);
  const targets = describeKernels(output, device);
  const failures = await checkConformance(output, device);
  const peaks = await measurePeaksApart();
  describePeaks(output, peaks);
  const rows = await quickBench(output, device, peaks);
  output.result({
    node: process.version,
    threads: device.numThreads,
    memoryBytes: totalmem(),
    nativeRefusal: device.nativeRefusal,
    features: createNativeRuntime().runtime?.features ?? null,
    hugePages: hugePages(),
    kernels: targets,
    conformance: { cases: CONFORMANCE_CASES.length, seed: SEED, failures },
    peaks,
    bench: rows,
  });
  if (failures.length > 0) {
    throw new OperationalError(
      "kernel.conformance",
      `${failures.length} of ${CONFORMANCE_CASES.length} conformance cases failed on this ` +
        "machine; " +
        "HADAL_KERNELS=reference runs without the kernels at fault. Please report this output",
    );
  }
};

function describeMachine(output: Output): void {
  const model = cpus()[0]?.model ?? "unknown processor";
  const gib = (totalmem() / 2 ** 30).toFixed(1);
  const threads = counted(availableParallelism(), "thread");
  output.line(`${model}, ${threads}, ${gib} GiB, Node ${process.version}`);
  const { runtime, reason } = createNativeRuntime();
  if (runtime === null) output.line(`native code: off (${reason})`);
  else {
    const features = Object.entries(runtime.features).map(
      ([name, present]) => `${name} ${present ? "yes" : "no"}`,
    );
    output.line(`native code: on; ${features.join(", ")}`);
    output.line(`huge pages: ${hugePages() ?? "not offered by this system"}`);
  }
  output.line();
}

/** When Linux gives them: "always", "madvise" (where asked, as native code does), or "never". */
function hugePages(): string | null {
  try {
    const text = readFileSync("/sys/kernel/mm/transparent_hugepage/enabled", "utf8");
    return /\[(\w+)\]/.exec(text)?.[1] ?? null;
  } catch {
    return null;
  }
}

/** How many kernels run on which target, and why any fell behind the best. */
function describeKernels(output: Output, device: Device): Record<string, string> {
  const reports = device.reports();
  const byTarget = new Map<string, string[]>();
  for (const { key, target } of reports) {
    byTarget.set(target, [...(byTarget.get(target) ?? []), key]);
  }
  for (const [target, keys] of byTarget) {
    const names = [...new Set(keys.map((key) => key.split("/")[0]))];
    output.line(`${target}: ${counted(keys.length, "kernel")} (${names.join(", ")})`);
  }
  const reasons = new Set(reports.flatMap((report) => report.reasons));
  for (const reason of reasons) output.line(output.style("dim", `  passed over: ${reason}`));
  output.line();
  return Object.fromEntries(reports.map(({ key, target }) => [key, target]));
}

async function checkConformance(
  output: Output,
  device: Device,
): Promise<readonly ConformanceFailure[]> {
  await using oracle = await openCpuDevice({ kernels: "reference", numThreads: 1 });
  const bench = new ConformanceBench(device, oracle);
  const failures: ConformanceFailure[] = [];
  for (const [index, testCase] of CONFORMANCE_CASES.entries()) {
    const text = `conformance: ${testCase.kernel}`;
    output.progress({ done: index, total: CONFORMANCE_CASES.length, text });
    const failure = bench.check(testCase, SEED);
    if (failure !== null) failures.push(failure);
  }
  const passed = CONFORMANCE_CASES.length - failures.length;
  output.line(`conformance: ${passed} of ${CONFORMANCE_CASES.length} cases pass (seed ${SEED})`);
  for (const { kernel, title, problem } of failures) {
    output.line(output.style("red", `  ${kernel}, ${title}: ${problem}`));
  }
  output.line();
  return failures;
}

function describePeaks(output: Output, peaks: Peaks): void {
  const number = (value: number | null): string => (value === null ? "—" : value.toFixed(0));
  output.line("measured peaks of one core:");
  output.line(
    `  arithmetic, GFLOP/s: f32 ${number(peaks.f32Gflops)}, bf16 ${number(peaks.bf16Gflops)}, ` +
      `WebAssembly f32 ${number(peaks.wasmF32Gflops)}`,
  );
  output.line(
    `  memory, GB/s: a = b + c ${peaks.triadGbytesPerSecond.toFixed(1)}, ` +
      `in place ${peaks.updateGbytesPerSecond.toFixed(1)}`,
  );
  output.line();
}

async function quickBench(output: Output, device: Device, peaks: Peaks): Promise<BenchRow[]> {
  const native = device.nativeRefusal === "";
  const chosen = KERNEL_CASES.map((kernelCase, index) => ({ kernelCase, index })).filter(
    ({ kernelCase }) =>
      QUICK_SHAPES.has(kernelCase.shape) &&
      kernelCase.numThreads === 1 &&
      kernelCase.kernels === (native ? "x64" : "wasm"),
  );
  const rows: BenchRow[] = [];
  for (const [done, { kernelCase, index }] of chosen.entries()) {
    output.progress({ done, total: chosen.length, text: `measuring ${kernelCase.name}` });
    rows.push(await runCaseApart("kernels", index, peaks));
  }
  output.table(benchTable(rows));
  return rows;
}
