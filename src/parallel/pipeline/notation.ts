/**
 * @file Schedules as text: the field's notation, and the CSV that PyTorch's pipelining reads.
 *
 *   text   one row a rank:    F0 F1 B0&F4 I2 W2        kind, micro-batch
 *                             0F0 3F0 3B0&0F4          with the stage before it, where a rank
 *                                                      meets a micro-batch in several stages
 *   CSV    one row a rank:    0F0,0F1,(0F4;0B0)OVERLAP_F_B,0I2,0W2      always with the stage
 *
 * Neither says how many ranks hold which stage; who reads them knows the layout.
 */
import { OperationalError } from "../../base/errors.ts";
import { isIntegerIn } from "../../base/integers.ts";
import {
  type Action,
  CHUNK_KINDS,
  type Chunk,
  type ChunkAction,
  type ChunkKind,
  describeChunk,
} from "./action.ts";
import { type PipelineLayout, stagesOf } from "./layout.ts";
import type { Schedule } from "./schedules/schedule.ts";
import { findScheduleFault } from "./validate.ts";

export function formatText({ layout, ranks }: Schedule): string {
  const name = (chunk: ChunkAction): string =>
    visitsOnce(layout) ? `${chunk.kind}${chunk.microBatch}` : describeChunk(chunk);
  const word = (action: Action): string =>
    action.kind === "F&B"
      ? `${name({ kind: "B", ...action.backward })}&${name({ kind: "F", ...action.forward })}`
      : name(action);
  return ranks.map((actions) => `${actions.map(word).join(" ")}\n`).join("");
}

export function formatCsv({ ranks }: Schedule): string {
  const cell = (action: Action): string => {
    if (action.kind !== "F&B") return describeChunk(action);
    const forward = describeChunk({ kind: "F", ...action.forward });
    return `(${forward};${describeChunk({ kind: "B", ...action.backward })})OVERLAP_F_B`;
  };
  return ranks.map((actions) => `${actions.map(cell).join(",")}\n`).join("");
}

/** Whether a rank and a micro-batch determine the stage. */
function visitsOnce({ numRanks, numStages }: PipelineLayout): boolean {
  return numStages === numRanks;
}

/** Reads either notation back; a schedule that could not be run is refused. */
export function parseSchedule(text: string, layout: PipelineLayout): Schedule {
  const rows = text.replace(/\n$/, "").split("\n");
  const isCsv = text.includes(",") || text.includes("OVERLAP");
  const ranks = rows.map((row, rank) => {
    const words = row.split(isCsv ? "," : " ").filter((word) => word.trim() !== "");
    return words.map((word) => parseAction(word.trim(), { layout, rank }));
  });
  return checked({ layout, ranks });
}

/** Reads `ranks` of `hadal schedule --json` back. */
export function parseScheduleJson(value: unknown, layout: PipelineLayout): Schedule {
  if (!Array.isArray(value)) throw fault("the ranks of a schedule are an array of arrays");
  const ranks = value.map((row: unknown, rank) => {
    if (!Array.isArray(row)) throw fault(`row ${rank} is not an array of actions`);
    return row.map((item: unknown) => actionFrom(item, rank));
  });
  return checked({ layout, ranks });
}

function checked(schedule: Schedule): Schedule {
  const problem = findScheduleFault(schedule);
  if (problem !== null) throw fault(problem);
  return schedule;
}

interface Place {
  readonly layout: PipelineLayout;
  readonly rank: number;
}

function parseAction(word: string, place: Place): Action {
  const paired = /^\((\w+);(\w+)\)OVERLAP_F_B$/.exec(word) ?? /^(\w+)&(\w+)$/.exec(word);
  if (paired === null) return parseChunk(word, place);
  const halves = [parseChunk(paired[1]!, place), parseChunk(paired[2]!, place)];
  const forward = halves.find(({ kind }) => kind === "F");
  const backward = halves.find(({ kind }) => kind === "B");
  if (forward === undefined || backward === undefined) {
    throw fault(`${word} on rank ${place.rank}: a pair is one F and one B`);
  }
  return { kind: "F&B", forward: bare(forward), backward: bare(backward) };
}

function parseChunk(word: string, { layout, rank }: Place): ChunkAction {
  const [, stageText, kind, microBatchText] = /^(\d{1,6})?([FBIW])(\d{1,6})$/.exec(word) ?? [];
  if (kind === undefined || microBatchText === undefined) {
    throw fault(`"${word}" on rank ${rank}: an action looks like F3, 2B0 or B0&F4`);
  }
  const microBatch = Number(microBatchText);
  if (stageText !== undefined) {
    return { kind: kind as ChunkKind, stage: Number(stageText), microBatch };
  }
  const exists = rank < layout.numRanks && microBatch < layout.numMicroBatches;
  const stages = exists ? stagesOf(layout, rank, microBatch) : [];
  if (stages.length !== 1) {
    throw fault(`"${word}" on rank ${rank}: the stage is not clear; write it first, as in 2B0`);
  }
  return { kind: kind as ChunkKind, stage: stages[0]!, microBatch };
}

function bare({ stage, microBatch }: ChunkAction): Chunk {
  return { stage, microBatch };
}

function actionFrom(item: unknown, rank: number): Action {
  const fields = (typeof item === "object" && item !== null ? item : {}) as Record<string, unknown>;
  const { kind } = fields;
  if (kind === "F&B") {
    return {
      kind,
      forward: chunkFrom(fields["forward"], rank),
      backward: chunkFrom(fields["backward"], rank),
    };
  }
  if (!CHUNK_KINDS.includes(kind as ChunkKind)) {
    throw fault(`row ${rank}: kind (${kind}) must be one of ${CHUNK_KINDS.join(", ")}, F&B`);
  }
  return { kind: kind as ChunkKind, ...chunkFrom(item, rank) };
}

function chunkFrom(item: unknown, rank: number): Chunk {
  const fields = (typeof item === "object" && item !== null ? item : {}) as Record<string, unknown>;
  const { stage, microBatch } = fields;
  if (!isIntegerIn(stage, 0, 1e6) || !isIntegerIn(microBatch, 0, 1e6)) {
    throw fault(`row ${rank}: stage and microBatch must be whole numbers from 0`);
  }
  return { stage, microBatch };
}

function fault(message: string): OperationalError {
  return new OperationalError("parallel.schedule", `not a schedule: ${message}`);
}
