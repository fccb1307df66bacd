/**
 * @file What ranks did, as a Chrome trace (opens in Perfetto and chrome://tracing), and back.
 *
 * One process, one thread a rank; a complete event for each action, named as in the notation, times
 * in microseconds from the first action of any rank.
 */
import { OperationalError } from "../../base/errors.ts";
import { isIntegerIn } from "../../base/integers.ts";
import { type Action, describeChunk, partsOf } from "./action.ts";
import type { PipelineLayout } from "./layout.ts";
import { formatText, parseScheduleJson } from "./notation.ts";
import type { Schedule } from "./schedules/schedule.ts";
import { type TimedAction, type Timeline, timelineOf } from "./simulate.ts";

/** A finite number of microseconds, and not absurd. */
const MICROSECONDS_MAX = 1e15;

/** The trace as JSON text; times of `ranks` are in milliseconds. */
export function formatTrace(ranks: readonly (readonly TimedAction[])[]): string {
  const first = ranks.flat().reduce((least, { start }) => Math.min(least, start), Infinity);
  const names = ranks.map((_, rank) => ({
    name: "thread_name",
    ph: "M",
    pid: 0,
    tid: rank,
    args: { name: `rank ${rank}` },
  }));
  const events = ranks.flatMap((actions, rank) =>
    actions.map(({ action, start, end }) => ({
      name: partsOf(action).map(describeChunk).join("&"),
      cat: action.kind,
      ph: "X",
      pid: 0,
      tid: rank,
      ts: (start - first) * 1000,
      dur: (end - start) * 1000,
      args: { action },
    })),
  );
  return `${JSON.stringify({ traceEvents: [...names, ...events], displayTimeUnit: "ms" })}\n`;
}

/** The timeline of a trace of this very schedule, in milliseconds. */
export function parseTrace(text: string, schedule: Schedule): Timeline {
  const events = eventsOf(text);
  const ranks = schedule.ranks.map((_, rank) =>
    events
      .filter(({ tid }) => tid === rank)
      .toSorted((a, b) => a.ts - b.ts)
      .map(({ ts, dur, action }) => ({ action, start: ts / 1000, end: (ts + dur) / 1000 })),
  );
  const actions = ranks.map((row) => row.map(({ action }) => action));
  const traced = readSchedule(actions, schedule.layout);
  if (formatText(traced) !== formatText(schedule)) throw fault("it is of another schedule");
  return timelineOf(
    ranks.map((actions, rank) =>
      actions.map((timed, index) => ({ ...timed, action: traced.ranks[rank]![index]! })),
    ),
  );
}

function readSchedule(actions: unknown, layout: PipelineLayout): Schedule {
  try {
    return parseScheduleJson(actions, layout);
  } catch (error) {
    if (error instanceof OperationalError) throw fault(error.message);
    throw error;
  }
}

interface TraceEvent {
  readonly tid: number;
  readonly ts: number;
  readonly dur: number;
  readonly action: Action;
}

function eventsOf(text: string): TraceEvent[] {
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch {
    throw fault("it is not JSON");
  }
  const list = (value as { traceEvents?: unknown } | null)?.traceEvents;
  if (!Array.isArray(list)) throw fault("it has no traceEvents");
  return list.flatMap((item: unknown) => {
    const { ph, tid, ts, dur, args } = (item ?? {}) as Record<string, unknown>;
    const action = (args as { action?: unknown } | undefined)?.action;
    if (ph !== "X" || action === undefined) return [];
    const isTimed = isIntegerIn(tid, 0, 65535) && isTime(ts) && isTime(dur);
    if (!isTimed) throw fault("an event has no rank or no times");
    // Checked as a whole by `parseScheduleJson`.
    return [{ tid, ts, dur, action: action as Action }];
  });
}

function isTime(value: unknown): value is number {
  return typeof value === "number" && value >= 0 && value <= MICROSECONDS_MAX;
}

function fault(problem: string): OperationalError {
  return new OperationalError("parallel.trace", `not a trace of this schedule: ${problem}`);
}
