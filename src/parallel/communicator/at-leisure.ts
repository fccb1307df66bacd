/** @file Waiting that leaves the event loop to others: for ranks that have more to do. */
import type { Communicator, Judged, Operation } from "./communicator.ts";

/** Time in which an operation is awaited without rest. */
const BUSY_MS = 20;
const REST_MS = 1;

/** Until the operation is done; throws if another rank is lost. */
export async function atLeisure(
  communicator: Communicator,
  operation: Operation,
  judged: Judged,
): Promise<void> {
  const start = performance.now();
  while (!operation.isDone()) {
    communicator.watch(judged);
    const isBusy = performance.now() - start < BUSY_MS;
    await new Promise<void>((resolve) => {
      if (isBusy) setImmediate(resolve);
      else setTimeout(resolve, REST_MS);
    });
  }
}
