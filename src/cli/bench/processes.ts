/** @file Runs benchmarks one after another, each in its own process. */
import { spawn } from "node:child_process";
import { fileURLToPath } from "node:url";
import { OperationalError } from "../../base/errors.ts";
import { siblingModule } from "../../base/modules.ts";
import type { RecipeName } from "../../training/recipe/recipes.ts";
import type { ComparisonSample } from "./comparison.ts";
import type { DecodingTiming } from "./model-cases.ts";
import type { Peaks } from "./peaks.ts";
import type { BenchRow } from "./row.ts";

export function measurePeaksApart(): Promise<Peaks> {
  return runChild(["peaks"]) as Promise<Peaks>;
}

/** Run case number `index` of a kind. */
export function runCaseApart(
  kind: "kernels" | "model",
  index: number,
  peaks: Peaks,
): Promise<BenchRow> {
  return runChild([kind, String(index), JSON.stringify(peaks)]) as Promise<BenchRow>;
}

/** Our side of a comparison of training steps with a peer's. */
export function runComparisonApart(recipe: RecipeName): Promise<ComparisonSample> {
  return runChild(["comparison", recipe]) as Promise<ComparisonSample>;
}

/** Our side of a comparison of generation with a peer's; `weights` as `--weights` has them. */
export function runDecodingApart(weights: string, threads: number): Promise<DecodingTiming> {
  return runChild(["decoding", weights, String(threads)]) as Promise<DecodingTiming>;
}

function runChild(args: readonly string[]): Promise<unknown> {
  const script = fileURLToPath(siblingModule("./child", import.meta.url));
  const child = spawn(process.execPath, [script, ...args], {
    stdio: ["ignore", "pipe", "inherit"],
  });
  return new Promise((resolve, reject) => {
    let text = "";
    child.stdout.setEncoding("utf8");
    child.stdout.on("data", (chunk: string) => {
      text += chunk;
    });
    child.once("error", reject);
    child.once("close", (code, signal) => {
      if (code === 0) resolve(JSON.parse(text));
      else {
        const how = signal === null ? `with code ${code}` : `by ${signal}`;
        const message = `the benchmark process ended ${how}; its own words stand above`;
        reject(new OperationalError("platform.benchmark", message));
      }
    });
  });
}
