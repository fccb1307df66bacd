/** @file Loading a model to use it: from a run folder (its last checkpoint) or a checkpoint. */
import type { Device } from "../device/device.ts";
import { type LoadedModel, loadCheckpoint } from "../training/run/checkpoint.ts";
import { resolveCheckpoint } from "../training/run/run-folder.ts";

/** The model that `path` means, to infer alone, and its tokenizer. */
export function loadModel(device: Device, path: string): LoadedModel {
  return loadCheckpoint(device, resolveCheckpoint(path), { weights: "bf16" });
}
