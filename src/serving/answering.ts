/**
 * @file Running jobs for a client: as one body, or as events. Both are made of the same events.
 *
 * Every protocol gives a `Shape`: what to send for each event, and the body that all of them add up
 * to. The first event is awaited before a stream begins, so that a request that is refused (queue
 * full, prompt too long) still gets its status.
 */
import { failureOf, INTERNAL_FAILURE } from "./failure.ts";
import { type Job, type JobEvent, runJobs } from "./generation.ts";
import type { Exchange } from "./http/exchange.ts";
import type { ServedModel } from "./models/registry.ts";

/** An event to send. */
export interface Sent {
  readonly event?: string;
  readonly data: unknown;
}

export interface Shape {
  /** Take one event of a job into the answer; what a stream sends for it. */
  take(job: number, event: JobEvent): readonly Sent[];
  /** What a stream sends before everything else, once the engine has begun. */
  begin(): readonly Sent[];
  /** What a stream sends last. */
  end(): readonly Sent[];
  /** The whole answer. */
  body(): unknown;
  /** What a stream sends for a failure in its middle. */
  failure(error: ReturnType<typeof failureOf>): Sent;
}

export interface Answering {
  readonly model: ServedModel;
  readonly jobs: readonly Job[];
  readonly isStream: boolean;
  readonly shape: Shape;
}

/** Answer an exchange with what its jobs bring. */
export async function answer(
  exchange: Exchange,
  { model, jobs, isStream, shape }: Answering,
): Promise<void> {
  const events = runJobs(model.engine, jobs, exchange.signal);
  if (!isStream) {
    for await (const [job, event] of events) shape.take(job, event);
    if (!exchange.signal.aborted) exchange.json(200, shape.body());
    return;
  }
  const first = await events.next();
  using stream = exchange.events();
  const send = async (list: readonly Sent[]): Promise<void> => {
    for (const { event, data } of list) {
      await stream.send(typeof data === "string" ? data : JSON.stringify(data), event);
    }
  };
  try {
    await send(shape.begin());
    if (first.done !== true) await send(shape.take(...first.value));
    for await (const [job, event] of events) await send(shape.take(job, event));
    await send(shape.end());
  } catch (error) {
    await send([shape.failure(failureOf(error) ?? INTERNAL_FAILURE)]);
    throw error;
  } finally {
    stream.end();
  }
}
