/**
 * @file One benchmark in a process of its own: kernels measured in one process disturb each other
 * by what they leave in the caches and in the engine's type feedback.
 *
 * Arguments: the kind, the number of the case (of a comparison, the recipe or the weights), and the
 * peaks as JSON (of a comparison of decoding, the threads). Prints the row or sample as JSON.
 */
import { defined } from "../../base/errors.ts";
import type { RecipeName } from "../../training/recipe/recipes.ts";
import { runComparison, runDecodingComparison } from "./comparison.ts";
import { KERNEL_CASES, runKernelCase } from "./kernel-cases.ts";
import { MODEL_CASES, runModelCase } from "./model-cases.ts";
import { measurePeaks, type Peaks } from "./peaks.ts";

const [kind, index, detail] = process.argv.slice(2);
const peaks = JSON.parse(detail ?? "null") as Peaks;
const at = Number(index);
const runs: Readonly<Record<string, () => unknown>> = {
  peaks: measurePeaks,
  kernels: () => runKernelCase(defined(KERNEL_CASES[at], `case ${at}`), peaks),
  comparison: () => runComparison(index as RecipeName),
  decoding: () => runDecodingComparison(index ?? "", Number(detail)),
  model: () => runModelCase(defined(MODEL_CASES[at], `case ${at}`), peaks),
};
const run = defined(runs[kind ?? ""], `benchmark ${kind}`);
process.stdout.write(`${JSON.stringify(await run())}\n`);
