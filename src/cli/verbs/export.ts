/** @file `hadal export`: a model in another program's format. */
import { statSync } from "node:fs";
import { cpuOptionsFromEnvironment } from "../../device/cpu/cpu-device.ts";
import { exportGguf } from "../../inference/export-gguf.ts";
import { openCpuDevice } from "../../kernels/cpu.ts";
import { loadCheckpoint } from "../../training/run/checkpoint.ts";
import { resolveCheckpoint } from "../../training/run/run-folder.ts";
import type { exportModel } from "../declarations/export.ts";
import type { Run } from "../verb.ts";

export const run: Run<typeof exportModel> = async (values, { output, env }) => {
  const { model: path, format, out, dtype } = values;
  await using device = await openCpuDevice({ ...cpuOptionsFromEnvironment(env), numThreads: 1 });
  const loaded = loadCheckpoint(device, resolveCheckpoint(path), { precision: "f32" });
  exportGguf(loaded, out, dtype);
  const bytes = statSync(out).size;
  output.line(`${out}: ${(bytes / 1e6).toFixed(1)} MB, ${format}, matrices in ${dtype}`);
  output.result({ out, bytes, format, dtype });
};
