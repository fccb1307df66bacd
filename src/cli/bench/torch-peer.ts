/**
 * @file PyTorch's side of `hadal bench train --against torch`: finds a Python with PyTorch, runs
 * bench/peers/torch_v3_train.py, and sets its figures beside ours.
 *
 * Processes alternate, ours and theirs, so that what disturbs the machine disturbs both; a figure
 * is the median of the processes' own medians. The fp8 and bf16 recipes stand against bf16
 * autocast, f32 against f32. Refuses where PyTorch is not installed, and where the two models
 * differ in size.
 */
import { execFile } from "node:child_process";
import { existsSync } from "node:fs";
import { join } from "node:path";
import { promisify } from "node:util";
import { OperationalError } from "../../base/errors.ts";
import { median } from "../../base/median.ts";
import type { RecipeName } from "../../training/recipe/recipes.ts";
import { COMPARISON_STEPS, COMPARISON_THREADS, type ComparisonSample } from "./comparison.ts";
import { UNTIMED_STEPS } from "./model-cases.ts";
import { runComparisonApart } from "./processes.ts";
import type { BenchRow } from "./row.ts";

/** Run, not imported: it stands beside src in a checkout and beside dist in the package. */
const ROOT = join(import.meta.dirname, "..", "..", "..");
const SCRIPT = join(ROOT, "bench", "peers", "torch_v3_train.py");
/** Debian's package belongs to the system's Python, which may not be the first on the path. */
const PYTHONS = ["/usr/bin/python3", "python3"];
const PEER_SAMPLES = 5;

type PeerDtype = "bf16" | "f32";

const COMPARED: readonly { readonly recipe: RecipeName; readonly against: PeerDtype }[] = [
  { recipe: "bf16", against: "bf16" },
  { recipe: "fp8", against: "bf16" },
  { recipe: "f32", against: "f32" },
];

const run = promisify(execFile);

/** The comparison, row by row; `report` hears of each process that is about to start. */
export async function compareWithTorch(
  report: (done: number, total: number, text: string) => void,
): Promise<BenchRow[]> {
  const python = await findPython();
  const ours = new Map<RecipeName, ComparisonSample[]>();
  const theirs = new Map<PeerDtype, ComparisonSample[]>();
  const dtypes = [...new Set(COMPARED.map(({ against }) => against))];
  const total = PEER_SAMPLES * (COMPARED.length + dtypes.length);
  let done = 0;
  for (let sample = 0; sample < PEER_SAMPLES; sample++) {
    for (const dtype of dtypes) {
      report(done++, total, `PyTorch ${dtype}`);
      add(theirs, dtype, await runTorch(python, dtype));
      for (const { recipe, against } of COMPARED) {
        if (against !== dtype) continue;
        report(done++, total, `the ${recipe} recipe`);
        add(ours, recipe, await runComparisonApart(recipe));
      }
    }
  }
  return COMPARED.map(({ recipe, against }) =>
    compare(recipe, ours.get(recipe) ?? [], against, theirs.get(against) ?? []),
  );
}

function add<Key>(to: Map<Key, ComparisonSample[]>, key: Key, sample: ComparisonSample): void {
  to.set(key, [...(to.get(key) ?? []), sample]);
}

function compare(
  recipe: RecipeName,
  ours: readonly ComparisonSample[],
  against: PeerDtype,
  theirs: readonly ComparisonSample[],
): BenchRow {
  const parameters = ours[0]?.parameters ?? 0;
  const peerParameters = theirs[0]?.parameters ?? 0;
  if (parameters !== peerParameters) {
    throw new OperationalError(
      "platform.peer",
      `${SCRIPT} has ${peerParameters} parameters and the small preset ${parameters}; ` +
        "the sizes of both must agree",
    );
  }
  const [speed, peerSpeed] = [
    medianOf(ours, "tokensPerSecond"),
    medianOf(theirs, "tokensPerSecond"),
  ];
  const [bytes, peerBytes] = [medianOf(ours, "peakBytes"), medianOf(theirs, "peakBytes")];
  return {
    name: "train step",
    shape: `${(parameters / 1e6).toFixed(1)}M parameters, 16×256`,
    implementation: `x64 ×${COMPARISON_THREADS} ${recipe}`,
    tokensPerSecond: speed,
    against: `torch ${against}`,
    ratio: speed / peerSpeed,
    peakBytes: bytes,
    peakRatio: bytes / peerBytes,
  };
}

function medianOf(
  samples: readonly ComparisonSample[],
  field: "tokensPerSecond" | "peakBytes",
): number {
  return median(samples.map((sample) => sample[field]));
}

async function findPython(): Promise<string> {
  if (!existsSync(SCRIPT)) {
    throw new OperationalError("platform.peer", `${SCRIPT} is missing; it comes with the checkout`);
  }
  for (const python of PYTHONS) {
    try {
      await run(python, ["-c", "import torch, numpy"]);
      return python;
    } catch {
      // This one has no PyTorch; the next may.
    }
  }
  throw new OperationalError(
    "platform.peer",
    `no PyTorch: neither ${PYTHONS.join(" nor ")} can import torch and numpy; on Debian ` +
      "`apt-get install python3-torch python3-numpy libopenblas0-openmp`",
  );
}

/** What the script's last line says, as far as it is compared. */
interface TorchResult {
  readonly params: number;
  readonly tok_s: number;
  readonly peak_rss_mb: number;
}

async function runTorch(python: string, dtype: PeerDtype): Promise<ComparisonSample> {
  const sizes = ["--warmup", String(UNTIMED_STEPS), "--steps", String(COMPARISON_STEPS)];
  const args = ["--dtype", dtype, "--threads", String(COMPARISON_THREADS), ...sizes, "--json"];
  const { stdout } = await run(python, [SCRIPT, ...args]).catch((error: Error) => {
    throw new OperationalError("platform.peer", `${SCRIPT} failed: ${error.message}`, {}, error);
  });
  const result = JSON.parse(stdout.trim().split("\n").at(-1) ?? "") as TorchResult;
  return {
    parameters: result.params,
    tokensPerSecond: result.tok_s,
    peakBytes: result.peak_rss_mb * 2 ** 20,
  };
}
