/**
 * @file What ranks serve, whatever is divided among them: one model, whose engine is opened once.
 */
import { availableParallelism } from "node:os";
import { OperationalError } from "../../base/errors.ts";
import { floorDiv } from "../../base/integers.ts";
import { cpuOptionsFromEnvironment } from "../../device/cpu/cpu-device.ts";
import type { ServeOptions } from "../serve-model.ts";
import type { Context } from "../verb.ts";
import { ranksOfThisHost } from "./launcher.ts";

/** As it was named. */
export function theOneModel({ models }: ServeOptions): string {
  const [model, ...others] = models;
  if (model !== undefined && others.length === 0) return model;
  throw new OperationalError("usage.ranks", `ranks serve one --model, not ${models.length}`);
}

type OpenModel = NonNullable<ServeOptions["openModel"]>;

/** `open`, which ranks can do once. */
export function openedOnce(open: OpenModel): OpenModel {
  let isOpened = false;
  return async (path, prefixFolder) => {
    if (isOpened) {
      const message = "an engine over ranks is opened once; start the ranks again";
      throw new OperationalError("serving.model", message);
    }
    isOpened = true;
    return await open(path, prefixFolder);
  };
}

/** Ranks of one machine share its threads. */
export function withThreads(env: Context["env"]): Context["env"] {
  const { numThreads } = cpuOptionsFromEnvironment(env);
  const share = floorDiv(availableParallelism(), ranksOfThisHost(env) ?? 1);
  return { ...env, HADAL_THREADS: String(numThreads ?? Math.max(1, share)) };
}
