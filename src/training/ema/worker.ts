/**
 * @file The body of the averaging thread: waits for a request, updates every span, says so, waits
 * again.
 */
import { parentPort, workerData } from "node:worker_threads";
import { defined } from "../../base/errors.ts";
import {
  type AverageWorkerStart,
  averageSpan,
  COMPLETED,
  FAILED,
  REQUESTED,
  viewControl,
} from "./control.ts";

const start = workerData as AverageWorkerStart;
const { counters, weight } = viewControl(start.control);

defined(parentPort, "parentPort").postMessage("ready");
for (let done = 0; ; done++) {
  Atomics.wait(counters, REQUESTED, done);
  try {
    // Views are made anew: memory that grew has left older ones behind.
    const buffer = start.wasm.buffer;
    for (const { valuesOffset, averageOffset, length } of start.spans) {
      averageSpan(
        new Float32Array(buffer, valuesOffset, length),
        new Float32Array(buffer, averageOffset, length),
        weight[0]!,
      );
    }
  } catch (error) {
    Atomics.store(counters, FAILED, 1);
    Atomics.notify(counters, COMPLETED);
    throw error;
  }
  Atomics.store(counters, COMPLETED, done + 1);
  Atomics.notify(counters, COMPLETED);
}
