/** @file The thread of one served model's engine, or of one of the two of a split one. */
import { parentPort, workerData } from "node:worker_threads";
import { defined } from "../../base/errors.ts";
import { answerOn, hostEngine, signsOfLife } from "../../inference/engine/thread/engine-host.ts";
import { RemoteReader } from "../../inference/engine/thread/remote-reader.ts";
import type { EngineOrigin } from "./engine-origin.ts";
import { openEngineHere } from "./open-engine.ts";

const { path, env, prefixFolder, weights, port } = workerData as EngineOrigin;
const reader = port?.role === "decode" ? { reader: new RemoteReader(port.end) } : {};
const server = defined(parentPort, "the thread that started this one");
const onLaunch = signsOfLife(server);
const engine = await hostEngine(server, () =>
  openEngineHere(path, env, { prefixFolder, weights, onLaunch, ...reader }),
);
if (port?.role === "prefill" && engine !== null) {
  answerOn(port.end, engine);
  // When the server closes this engine, the other one does not keep the thread.
  port.end.unref();
}
