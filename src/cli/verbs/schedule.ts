/** @file `hadal schedule`: a pipeline schedule in text, CSV, JSON or as a picture. */
import { readFileSync } from "node:fs";
import { counted } from "../../base/counted.ts";
import { OperationalError, reasonOf } from "../../base/errors.ts";
import { writeFileAtomically } from "../../checkpoint/atomic.ts";
import { drawSvg } from "../../parallel/pipeline/draw-svg.ts";
import { formatCsv, formatText } from "../../parallel/pipeline/notation.ts";
import { makeSchedule } from "../../parallel/pipeline/schedules/kinds.ts";
import {
  fixedCosts,
  simulate,
  type Timeline,
  UNIT_COSTS,
} from "../../parallel/pipeline/simulate.ts";
import { parseTrace } from "../../parallel/pipeline/trace.ts";
import type { schedule } from "../declarations/schedule.ts";
import type { Run } from "../verb.ts";

/** Actions beyond which a schedule is of no use to anybody and takes minutes to make. */
const MOST_ACTIONS = 1_000_000;

export const run: Run<typeof schedule> = async (values, { output }) => {
  const { kind, ranks: numRanks, csv, svg } = values;
  const numMicroBatches = values["micro-batches"];
  const numStagesPerRank = kind === "interleaved" ? values["stages-per-rank"] : 1;
  if (numRanks * numMicroBatches * numStagesPerRank > MOST_ACTIONS) {
    throw new OperationalError(
      "parallel.schedule",
      `${numRanks} ranks × ${numMicroBatches} micro-batches × ${numStagesPerRank} stages: ` +
        `more than ${MOST_ACTIONS.toLocaleString("en")} chunks; use fewer`,
    );
  }
  const made = makeSchedule(kind, { numRanks, numMicroBatches, numStagesPerRank });
  const timeline = simulate(made, fixedCosts(UNIT_COSTS));
  const measured =
    values.measured === undefined ? null : parseTrace(readText(values.measured), made);
  const microBatches = counted(numMicroBatches, "micro-batch", "micro-batches");
  const size = `${counted(numRanks, "rank")}, ${microBatches}`;
  if (svg !== undefined) {
    const pictures = [{ heading: `${kind}, ${size}: ${summarise(timeline)}`, timeline }];
    if (measured !== null) {
      pictures.push({ heading: `measured: ${summarise(measured, " ms")}`, timeline: measured });
    }
    writeFileAtomically(svg, drawSvg(made.layout, pictures));
  }
  if (csv) output.text(formatCsv(made));
  else {
    output.text(formatText(made));
    output.line(`\n${summarise(timeline)} (F = I = W = 1, B = 2, F&B = 3)`);
    if (measured !== null) output.line(`measured: ${summarise(measured, " ms")}`);
    if (svg !== undefined) output.line(`drawn: ${svg}`);
  }
  output.result({
    ranks: made.ranks,
    ...numbersOf(timeline),
    ...(measured === null ? {} : { measured: numbersOf(measured) }),
  });
};

function numbersOf({ makespan, bubble, peakActivations }: Timeline) {
  return { makespan, bubble, peakActivations };
}

function summarise({ makespan, bubble, peakActivations }: Timeline, unit = ""): string {
  const share = ((100 * bubble) / makespan).toFixed(1);
  const number = (value: number): string => `${Number(value.toFixed(3))}${unit}`;
  return (
    `makespan ${number(makespan)}, bubble ${number(bubble)} (${share} %), ` +
    `at most ${peakActivations} chunks alive on a rank`
  );
}

function readText(path: string): string {
  try {
    return readFileSync(path, "utf8");
  } catch (cause) {
    throw new OperationalError(
      "parallel.trace",
      `${path} cannot be read: ${reasonOf(cause)}`,
      { path },
      cause,
    );
  }
}
