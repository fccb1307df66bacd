/**
 * @file Every schedule over real ranks: losses and gradients are those of one process, bit for bit,
 * and what ran is what was planned.
 */
import assert from "node:assert/strict";
import { test } from "node:test";
import { OperationalError } from "../../../base/errors.ts";
import { openCpuDevice } from "../../../kernels/cpu.ts";
import { makeTensor, type Tensor } from "../../../tensor/tensor.ts";
import { view } from "../../../tensor/view.ts";
import type { Operation } from "../../communicator/communicator.ts";
import { runOnThreads } from "../../communicator/threads/run-on-threads.ts";
import { makeSchedule, type ScheduleKind } from "../schedules/kinds.ts";
import { formatTrace, parseTrace } from "../trace.ts";
import { runInterleaved, runAlone as runWaiting } from "./interleave.ts";
import type { PipelineInput, PipelineReport } from "./pipeline-ranks.fixture.ts";
import { COLUMNS, ROWS, ToyStage } from "./toy-stage.fixture.ts";

const PROGRAM = new URL("./pipeline-ranks.fixture.ts", import.meta.url);

interface Alone {
  readonly losses: ReadonlyMap<number, number>;
  readonly gradients: readonly Float32Array[];
}

/** One process, micro-batch after micro-batch. */
async function runAlone(numStages: number, microBatches: readonly number[]): Promise<Alone> {
  await using device = await openCpuDevice({ numThreads: 1 });
  const { memory } = device;
  const stages = Array.from(
    { length: numStages },
    (_, stage) => new ToyStage(device, { stage, isLast: stage === numStages - 1 }),
  );
  const make = (): Tensor<"f32"> =>
    makeTensor(memory, "f32", [ROWS, COLUMNS], memory.reserve(4 * ROWS * COLUMNS));
  for (const microBatch of microBatches) {
    const streams = stages.slice(1).map(make);
    const gradients = stages.slice(1).map(make);
    for (const [index, stage] of stages.entries()) {
      const call = {
        microBatch,
        input: streams[index - 1] ?? null,
        output: streams[index] ?? null,
      };
      assert.deepEqual([...stage.forward(call)], []);
    }
    for (const [index, stage] of [...stages.entries()].toReversed()) {
      const input = streams[index - 1] ?? null;
      const dOutput = gradients[index] ?? null;
      const dInput = gradients[index - 1] ?? null;
      assert.deepEqual(
        [...stage.backwardInput({ microBatch, input, dOutput, dInput, isFull: true })],
        [],
      );
      stage.backwardWeight(microBatch);
    }
  }
  return {
    losses: stages.at(-1)!.losses,
    gradients: stages.map(({ gradient }) => view(gradient).slice()),
  };
}

function upTo(end: number, from = 0): number[] {
  return Array.from({ length: end - from }, (_, index) => from + index);
}

const RUNS: readonly (readonly [kind: ScheduleKind, numRanks: number, numMicroBatches: number])[] =
  [
    ["gpipe", 3, 5],
    ["1f1b", 4, 6],
    ["interleaved", 2, 4],
    ["zb1p", 4, 6],
    ["dualpipe", 4, 10],
    ["dualpipev", 2, 6],
  ];

for (const [kind, numRanks, numMicroBatches] of RUNS) {
  test(`${kind} over ${numRanks} ranks gives the bits of one process`, async () => {
    const input: PipelineInput = {
      kind,
      numMicroBatches,
      numStagesPerRank: 2,
      communicates: kind === "dualpipe",
    };
    const reports = (await runOnThreads({ numRanks, program: PROGRAM, input })) as PipelineReport[];
    const { layout, ranks } = makeSchedule(kind, { ...input, numRanks });
    // A bidirectional pipeline adds up each direction by itself, then both.
    const groups = layout.directions.map(({ firstMicroBatch, endMicroBatch }) =>
      upTo(endMicroBatch, firstMicroBatch),
    );
    const alone = await Promise.all(groups.map((group) => runAlone(layout.numStages, group)));
    const losses = new Map(reports.flatMap((report) => report.losses));
    assert.equal(losses.size, numMicroBatches);
    for (const [microBatch, loss] of alone.flatMap((part) => [...part.losses])) {
      assert.equal(losses.get(microBatch), loss, `micro-batch ${microBatch}`);
    }
    for (const [rank, { gradients, timed }] of reports.entries()) {
      for (const [stage, gradient] of gradients) {
        const expected = alone
          .map((part) => part.gradients[stage]!)
          .reduce((sum, values) => sum.map((value, index) => value + values[index]!));
        assert.deepEqual(gradient, expected, `rank ${rank}, stage ${stage}`);
      }
      assert.deepEqual(
        timed.map(({ action }) => action),
        ranks[rank],
      );
    }
    assertTrace(reports, input, numRanks);
  });
}

function assertTrace(reports: readonly PipelineReport[], input: PipelineInput, numRanks: number) {
  const schedule = makeSchedule(input.kind, { ...input, numRanks });
  const text = formatTrace(reports.map(({ timed }) => timed));
  const timeline = parseTrace(text, schedule);
  assert.ok(timeline.makespan > 0 && timeline.bubble < timeline.makespan);
  const other = makeSchedule("gpipe", { numRanks, numMicroBatches: 1, numStagesPerRank: 1 });
  assert.throws(() => parseTrace(text, other), OperationalError);
}

test("what is no trace is refused", () => {
  const schedule = makeSchedule("gpipe", { numRanks: 1, numMicroBatches: 1, numStagesPerRank: 1 });
  const event = { ph: "X", tid: 0, ts: 1, dur: 1, args: { action: { kind: "F" } } };
  for (const text of ["", "{}", "null", '{"traceEvents":[]}', '{"traceEvents":[null]}']) {
    assert.throws(() => parseTrace(text, schedule), OperationalError);
  }
  for (const change of [{}, { ts: -1 }, { dur: "1" }, { tid: 1e9 }]) {
    const text = JSON.stringify({ traceEvents: [{ ...event, ...change }] });
    assert.throws(() => parseTrace(text, schedule), OperationalError);
  }
});

test("a pair runs in the report's order: each computes while the other's messages go", () => {
  const seen: string[] = [];
  function* work(steps: readonly string[], waits: readonly string[]): Generator<Operation> {
    for (const [index, step] of steps.entries()) {
      seen.push(step);
      const wait = waits[index];
      if (wait !== undefined) yield { isDone: () => false, wait: () => seen.push(wait) };
    }
  }
  runInterleaved(
    work(
      ["issue combine B", "MLP B, issue dispatch B", "attention B"],
      ["combine B", "dispatch B"],
    ),
    work(
      ["attention F, issue dispatch F", "MLP F, issue combine F", "end F"],
      ["dispatch F", "combine F"],
    ),
    { fill: () => false, finish: () => seen.push("W") },
  );
  assert.deepEqual(seen, [
    "issue combine B",
    "attention F, issue dispatch F",
    "combine B",
    "MLP B, issue dispatch B",
    "dispatch F",
    "MLP F, issue combine F",
    "dispatch B",
    "attention B",
    "W",
    "combine F",
    "end F",
  ]);
});

test("pieces of weight gradients fill waits until the message has come or all are done", () => {
  const seen: string[] = [];
  function* work(name: string, steps: number, polls: number): Generator<Operation> {
    for (let step = 0; step < steps; step++) {
      seen.push(`${name}${step}`);
      let left = polls;
      yield { isDone: () => left-- <= 0, wait: () => seen.push(`wait ${name}${step}`) };
    }
  }
  const weightsOf = (pieces: number) => {
    let left = pieces;
    return {
      fill: () => {
        if (left === 0) return false;
        seen.push(`W${--left}`);
        return true;
      },
      finish: () => seen.push("rest"),
    };
  };
  runInterleaved(work("B", 1, 2), work("F", 2, 1), weightsOf(4));
  const pair = "B0 F0 W3 W2 wait B0 W1 wait F0 F1 W0 wait F1 rest";
  assert.equal(seen.splice(0).join(" "), pair);
  runInterleaved(work("B", 2, 0), work("F", 1, 1), weightsOf(3));
  assert.equal(seen.splice(0).join(" "), "B0 F0 wait B0 B1 W2 wait F0 wait B1 rest");
  runInterleaved(work("B", 1, 0), work("F", 2, 2), weightsOf(1));
  assert.equal(seen.splice(0).join(" "), "B0 F0 wait B0 W0 rest wait F0 F1 wait F1");
  runWaiting(work("B", 2, 1), weightsOf(1));
  assert.equal(seen.join(" "), "B0 W0 wait B0 B1 wait B1 rest");
});
