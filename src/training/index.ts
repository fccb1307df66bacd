/** @file The package's entry `hadal/training`: settings, runs, checkpoints. */
export { type LoadedModel, loadCheckpoint } from "./run/checkpoint.ts";
export type { TrainingObserver } from "./run/observer.ts";
export { listCheckpoints, resolveCheckpoint } from "./run/run-folder.ts";
export { type TrainRunOptions, type TrainRunSummary, trainRun } from "./run/train-run.ts";
export { resolveSettings, type TrainingSettings } from "./settings.ts";
export { Trainer } from "./trainer.ts";
