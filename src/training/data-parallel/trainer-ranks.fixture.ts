/**
 * @file Ranks that train a small model in several layouts, one after the other, and tell what came
 * of it. Layouts smaller than the world run on several groups of ranks at once.
 */
import { smallSettings } from "../../../test/fixtures/small-run.ts";
import { Random } from "../../base/random.ts";
import type { Device } from "../../device/device.ts";
import { openCpuDevice } from "../../kernels/cpu.ts";
import { shareExperts } from "../../model/expert-share.ts";
import { Model } from "../../model/model.ts";
import { SPAN_NAMES } from "../../model/parameter-layout.ts";
import type { Communicator } from "../../parallel/communicator/communicator.ts";
import type { RankContext } from "../../parallel/communicator/rank-program.ts";
import { openMesh } from "../../parallel/mesh.ts";
import { view } from "../../tensor/view.ts";
import { learnedVocabulary, Tokenizer } from "../../tokenizer/tokenizer.ts";
import { BatchLoader } from "../data/batches.ts";
import type { TokenSource } from "../data/token-source.ts";
import type { StateSpans } from "../spans.ts";
import { type StepOutcome, Trainer } from "../trainer.ts";

export interface TrainerInput {
  readonly runs: readonly TrainerRun[];
}

export interface TrainerRun {
  readonly dp: number;
  /** Ranks that share the experts, times `dp`; 1 if left out. */
  readonly ep?: number;
  /** Changes to the settings of the fixture. */
  readonly settings: readonly string[];
  readonly steps: number;
  /** Take the whole state of this earlier run, on whichever layout, and go on from it. */
  readonly from?: number;
}

export interface TrainerReport {
  readonly outcomes: readonly StepOutcome[];
  /** All parameters after the last step. */
  readonly values: Float32Array;
  /** The moments and the average after the last step. */
  readonly state: Float32Array;
  /** Bytes of this rank's part of it, as its arena has them. */
  readonly stateBytes: number;
}

/** What a run leaves for another that goes on. */
interface Ended {
  readonly trainer: Trainer;
  readonly values: Float32Array;
  readonly state: readonly StateSpans[];
}

/** This rank's report of each run; null where it had no part in it. */
export async function runRank(context: RankContext): Promise<(TrainerReport | null)[]> {
  const { runs } = context.input as TrainerInput;
  await using device = await openCpuDevice({ numThreads: 1 });
  const world = await context.join(device.memory);
  const reports: (TrainerReport | null)[] = [];
  const ended: Ended[] = [];
  for (const run of runs) {
    const size = run.dp * (run.ep ?? 1);
    const group = Math.floor(world.rank / size);
    const isPart = (group + 1) * size <= world.size;
    const ranks = world.split(isPart ? group : null, world.rank, "ranks");
    if (ranks === null) {
      reports.push(null);
      continue;
    }
    const trainer = await makeTrainer(device, run, ranks);
    if (run.from !== undefined) resume(trainer, ended[run.from]!);
    const outcomes = Array.from({ length: run.steps }, () => trainer.step());
    const { decayed, undecayed, experts } = trainer.model.parameters;
    const values = Float32Array.from(
      [decayed, undecayed, experts].flatMap((span) => [...view(span.values)]),
    );
    const state = trainer.gatherStates();
    ended[runs.indexOf(run)] = { trainer, values, state };
    await trainer[Symbol.asyncDispose]();
    const flat = state.flatMap((spans) => SPAN_NAMES.flatMap((name) => [...view(spans[name])]));
    const { stateBytes } = trainer;
    reports.push({ outcomes, values, state: Float32Array.from(flat), stateBytes });
  }
  return reports;
}

async function makeTrainer(device: Device, run: TrainerRun, ranks: Communicator): Promise<Trainer> {
  const { ep = 1 } = run;
  const settings = smallSettings(...run.settings);
  const { data, model: config, seed } = settings;
  const mesh = ranks.size === 1 ? null : openMesh(ranks, { pp: 1, ep, dp: run.dp });
  const experts =
    mesh === null || ep === 1 ? null : shareExperts(mesh.ep, config, { ranksPerHost: ep });
  const model = new Model(device, config, {
    precision: settings.recipe,
    seed,
    ...(experts === null ? {} : { experts }),
  });
  const loader = new BatchLoader(makeSource(), tokenizer, {
    seqLength: data.sequenceLength,
    lookahead: 1 + config.numMtpModules,
    spanTokensMax: data.spanTokensMax,
    fimRate: data.fimRate,
    fimTokensMax: data.fimTokensMax,
    seed,
  });
  const parts = { device, model, loader, settings };
  return Trainer.start(mesh === null ? parts : { ...parts, ranks: mesh });
}

function resume(trainer: Trainer, { trainer: before, values, state }: Ended): void {
  let next = 0;
  const { decayed, undecayed, experts } = trainer.model.parameters;
  for (const span of [decayed, undecayed, experts]) {
    const target = view(span.values);
    target.set(values.subarray(next, next + target.length));
    next += target.length;
  }
  for (const [index, { bias }] of trainer.model.gateBiases.entries()) {
    view(bias).set(view(before.model.gateBiases[index]!.bias));
  }
  trainer.takeStates(state);
  trainer.restore(before.state);
}

const tokenizer = new Tokenizer(
  learnedVocabulary({ left: new Int32Array(0), right: new Int32Array(0) }),
);

function makeSource(): TokenSource {
  const random = new Random(5, "documents");
  const words = ["let ", "x", " = ", "f(", ")", ";\n", "1", "+"];
  const documents = Array.from({ length: 12 }, () =>
    tokenizer.encode(Array.from({ length: 60 }, () => words[random.below(8)]!).join("")),
  );
  return {
    numDocuments: documents.length,
    documentTokens: (document) => documents[document]!.length,
    read: (document, start, count) => documents[document]!.slice(start, start + count),
  };
}
