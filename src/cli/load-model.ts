/** @file Loading a model to use it: from a run folder (its last checkpoint) or a checkpoint. */
import type { Device } from "../device/device.ts";
import { inferenceOptions, type LoadedModel, loadCheckpoint } from "../training/run/checkpoint.ts";
import { resolveCheckpoint } from "../training/run/run-folder.ts";

/**
 * The model that `path` means, to infer alone, and its tokenizer; its weights in the format that
 * `weights` notes, or as they are stored.
 */
export function loadModel(device: Device, path: string, weights?: string): LoadedModel {
  const checkpoint = resolveCheckpoint(path);
  return loadCheckpoint(device, checkpoint, inferenceOptions(checkpoint, weights));
}
