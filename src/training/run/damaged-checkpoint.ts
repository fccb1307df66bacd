/**
 * @file What to do when a run's newest checkpoint cannot be read: an error that names the older
 * one.
 *
 * Checkpoints are whole or not there, so damage comes from outside (a bad disk, a careless copy).
 * Nothing is deleted or skipped silently: the user decides whether to go back. Weights for others
 * follow from the training state, which alone a run goes on from: they are made anew, and told of.
 */
import { OperationalError } from "../../base/errors.ts";
import { openCheckpointTensors } from "../../checkpoint/checkpoint-tensors.ts";
import { readModelConfig } from "./checkpoint.ts";
import { listCheckpoints } from "./run-folder.ts";

/** `read()` of the run's newest checkpoint; its failure tells how to resume from the one before. */
export function readingNewest<T>(run: string, read: () => T): T {
  try {
    return read();
  } catch (error) {
    if (!(error instanceof OperationalError)) throw error;
    const [older, newest] = listCheckpoints(run).slice(-2);
    if (older === undefined || newest === undefined) throw error;
    throw new OperationalError(
      error.code,
      `${error.message}; the checkpoint before it is ${older.path}: to resume from there, move ` +
        `${newest.path} away`,
      error.details,
      error,
    );
  }
}

/** Why nobody could load a checkpoint's weights; undefined if they are whole, by their size. */
export function problemOfWeights(checkpoint: string): string | undefined {
  try {
    readModelConfig(checkpoint);
    using _tensors = openCheckpointTensors(checkpoint);
    return undefined;
  } catch (error) {
    if (!(error instanceof OperationalError)) throw error;
    return error.message;
  }
}
