/** @file `hadal export`: a model in another program's format, or with smaller weights. */
import { readdirSync, statSync } from "node:fs";
import { join } from "node:path";
import { OperationalError } from "../../base/errors.ts";
import { cpuOptionsFromEnvironment } from "../../device/cpu/cpu-device.ts";
import { exportGguf } from "../../inference/export-gguf.ts";
import { openCpuDevice } from "../../kernels/cpu.ts";
import { parseWeightFormat, weightNotation } from "../../model/weight-format.ts";
import { type LoadedModel, loadCheckpoint, writeModel } from "../../training/run/checkpoint.ts";
import { resolveCheckpoint } from "../../training/run/run-folder.ts";
import type { Values } from "../declaration.ts";
import type { exportModel } from "../declarations/export.ts";
import type { Run } from "../verb.ts";

export const run: Run<typeof exportModel> = async (values, { output, env }) => {
  const { model: path, format, out } = values;
  refuseForeignFlag(values);
  refuseOccupied(out, format);
  await using device = await openCpuDevice({ ...cpuOptionsFromEnvironment(env), numThreads: 1 });
  const loaded = loadCheckpoint(device, resolveCheckpoint(path), { precision: "f32" });
  const dtype = format === "gguf" ? writeFile(loaded, values) : writeFolder(loaded, values);
  const bytes = format === "gguf" ? statSync(out).size : folderBytes(out);
  output.line(`${out}: ${(bytes / 1e6).toFixed(1)} MB, ${format}, matrices in ${dtype}`);
  output.result({ out, bytes, format, dtype });
};

/** Each format has its own way of saying how weights are stored. */
function refuseForeignFlag({ format, dtype, weights }: Values<typeof exportModel>): void {
  const isGguf = format === "gguf";
  if ((isGguf ? weights : dtype) === undefined) return;
  const [own, foreign] = isGguf ? ["dtype", "weights"] : ["weights", "dtype"];
  throw new OperationalError("usage.flags", `--format ${format} takes --${own}, not --${foreign}`);
}

/** What is written replaces what is in its place: nothing, or for a checkpoint an empty folder. */
function refuseOccupied(out: string, format: Values<typeof exportModel>["format"]): void {
  const place = statSync(out, { throwIfNoEntry: false });
  if (place === undefined) return;
  const isFolder = format === "huggingface";
  if (isFolder && place.isDirectory() && readdirSync(out).length === 0) return;
  const what = isFolder ? "a checkpoint" : "the file";
  throw new OperationalError(
    "checkpoint.exists",
    `${out} is there already, and ${what} would take its place; give another --out`,
  );
}

function writeFile(
  loaded: LoadedModel,
  { out, dtype = "bf16" }: Values<typeof exportModel>,
): string {
  exportGguf(loaded, out, dtype);
  return dtype;
}

function writeFolder(
  { model, tokenizer }: LoadedModel,
  { out, weights = "bf16" }: Values<typeof exportModel>,
): string {
  const format = parseWeightFormat(weights);
  writeModel(out, { model, tokenizer, dtype: format });
  return format === "f32" ? format : weightNotation(format);
}

function folderBytes(folder: string): number {
  return readdirSync(folder).reduce((sum, name) => sum + statSync(join(folder, name)).size, 0);
}
