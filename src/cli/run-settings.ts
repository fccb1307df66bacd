/** @file The settings a run was begun with, complete and checked. */
import { readRunConfig } from "../training/run/run-folder.ts";
import { resolveSettings, type TrainingSettings } from "../training/settings.ts";

/** The settings in the config.json of the run folder `path`. */
export function runSettings(path: string): TrainingSettings {
  const changes = { value: readRunConfig(path), origin: `${path}/config.json` };
  return resolveSettings({ preset: "tiny", changes });
}
