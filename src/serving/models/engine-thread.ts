/** @file The thread of one served model's engine. */
import { parentPort, workerData } from "node:worker_threads";
import { defined } from "../../base/errors.ts";
import { hostEngine } from "../../inference/engine/thread/engine-host.ts";
import { type EngineOrigin, openEngineHere } from "./open-engine.ts";

const { path, env, settings } = workerData as EngineOrigin;
await hostEngine(defined(parentPort, "the thread that started this one"), () =>
  openEngineHere(path, env, settings),
);
