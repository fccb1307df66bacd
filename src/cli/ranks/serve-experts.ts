/**
 * @file `hadal serve --expert-ranks N` as N processes that an MPI launcher has started: the first
 * one serves and is the engine, the others hold their part of the experts.
 */
import { OperationalError } from "../../base/errors.ts";
import { openExpertProcess } from "../../serving/models/expert-process.ts";
import { resolveCheckpoint } from "../../training/run/run-folder.ts";
import { engineSettings, modelOf, type ServeOptions, serveModels } from "../serve-model.ts";
import type { Context } from "../verb.ts";
import { ranksOfThisHost } from "./launcher.ts";
import { openedOnce, theOneModel, withThreads } from "./served-once.ts";

/** Until a signal comes, as `serveModels`; `onReady` is called on the first rank. */
export async function serveExperts(
  options: ServeOptions,
  context: Context,
  onReady: Parameters<typeof serveModels>[2],
): Promise<void> {
  const path = resolveCheckpoint(modelOf(theOneModel(options)).path);
  const { experts, prefixFolder, weights } = engineSettings(options, context.env);
  if (experts === undefined) {
    throw new OperationalError("usage.ranks", "--expert-ranks says how many ranks there are");
  }
  const env = withThreads(context.env);
  const ranksPerHost = ranksOfThisHost(context.env);
  const origin = { path, env, prefixFolder, weights };
  const { engine, ended } = await openExpertProcess(origin, { ...experts, ranksPerHost });
  if (engine === null) {
    // A signal reaches all; the first rank drains its requests and then says so.
    context.interruption.orderly();
    return await ended;
  }
  try {
    const openModel = openedOnce(() => Promise.resolve(engine));
    await serveModels({ ...options, openModel }, context, onReady);
  } finally {
    await engine.close();
  }
  await ended;
}
