/**
 * @file Ranks that train a small model in several layouts, one after the other, and tell what came
 * of it. Layouts smaller than the world run on several groups of ranks at once.
 */
import { smallSettings } from "../../../test/fixtures/small-run.ts";
import { Random } from "../../base/random.ts";
import type { Device } from "../../device/device.ts";
import { openCpuDevice } from "../../kernels/cpu.ts";
import { expertLayers } from "../../model/expert-layers.ts";
import { ExpertShare } from "../../model/expert-share.ts";
import { Model } from "../../model/model.ts";
import { SPAN_NAMES } from "../../model/parameter-layout.ts";
import type { Communicator } from "../../parallel/communicator/communicator.ts";
import type { RankContext } from "../../parallel/communicator/rank-program.ts";
import { openMesh } from "../../parallel/mesh.ts";
import { Arena } from "../../tensor/arena.ts";
import { view } from "../../tensor/view.ts";
import { learnedVocabulary, Tokenizer } from "../../tokenizer/tokenizer.ts";
import { BatchLoader } from "../data/batches.ts";
import type { TokenSource } from "../data/token-source.ts";
import type { BalanceOptions } from "../expert-balance/expert-balancer.ts";
import { elementsOfExpert } from "../expert-balance/expert-copies.ts";
import type { StateSpans } from "../spans.ts";
import { type StepOutcome, Trainer } from "../trainer.ts";

export interface TrainerInput {
  readonly runs: readonly TrainerRun[];
}

export interface TrainerRun {
  readonly dp: number;
  /** Ranks that share the experts, times `dp`; 1 if left out. */
  readonly ep?: number;
  /** Places for copies of experts, and when experts move; none and never if left out. */
  readonly numRedundant?: number;
  readonly balance?: BalanceOptions;
  /** The routing bias of experts 4 and 6. */
  readonly skew?: number;
  /** Changes to the settings of the fixture. */
  readonly settings: readonly string[];
  readonly steps: number;
  /** Take the whole state of this earlier run, on whichever layout, and go on from it. */
  readonly from?: number;
}

export interface TrainerReport {
  readonly outcomes: readonly StepOutcome[];
  /** All parameters after the last step, in the order of the model; of each expert one copy. */
  readonly values: Float32Array;
  /** Copies of an expert that differ. */
  readonly problems: readonly string[];
  /** The moments and the average after the last step. */
  readonly state: Float32Array;
  /** Bytes of this rank's part of it, as its arena has them. */
  readonly stateBytes: number;
}

/** What a run leaves for another that goes on. */
interface Ended {
  readonly trainer: Trainer;
  readonly states: readonly StateSpans[];
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
    const { trainer, share } = await makeTrainer(device, run, ranks);
    if (run.from !== undefined) resume(trainer, ended[run.from]!);
    const outcomes = Array.from({ length: run.steps }, () => trainer.step());
    const problems: string[] = [];
    const values = gatherValues(trainer, share, problems);
    const states = trainer.gatherStates();
    ended[runs.indexOf(run)] = { trainer, states };
    await trainer[Symbol.asyncDispose]();
    const flat = states.flatMap((spans) => SPAN_NAMES.flatMap((name) => [...view(spans[name])]));
    const { stateBytes } = trainer;
    const state = Float32Array.from(flat);
    reports.push({ outcomes, values, problems, state, stateBytes });
  }
  return reports;
}

async function makeTrainer(
  device: Device,
  run: TrainerRun,
  ranks: Communicator,
): Promise<{ readonly trainer: Trainer; readonly share: ExpertShare | null }> {
  const { ep = 1, numRedundant = 0, balance, skew = 0 } = run;
  const settings = smallSettings(...run.settings);
  const { data, model: config, seed } = settings;
  const mesh = ranks.size === 1 ? null : openMesh(ranks, { pp: 1, ep, dp: run.dp });
  const share =
    mesh === null || ep === 1
      ? null
      : new ExpertShare(mesh.ep, config, { ranksPerHost: ep, numRedundant });
  const model = new Model(device, config, {
    precision: settings.recipe,
    seed,
    ...(share === null ? {} : { experts: share }),
  });
  for (const { bias } of model.gateBiases) {
    // Two that begin on one rank where two ranks share eight.
    for (const expert of [4, 6]) if (skew !== 0) view(bias)[expert] = skew;
  }
  const loader = new BatchLoader(makeSource(), tokenizer, {
    seqLength: data.sequenceLength,
    lookahead: 1 + config.numMtpModules,
    spanTokensMax: data.spanTokensMax,
    fimRate: data.fimRate,
    fimTokensMax: data.fimTokensMax,
    seed,
  });
  const parts = { device, model, loader, settings };
  const experts = share && { share, ...(balance === undefined ? {} : { balance }) };
  const together = mesh === null ? {} : { ranks: mesh };
  const trainer = await Trainer.start({ ...parts, ...together, ...(experts && { experts }) });
  return { trainer, share };
}

/** Collective. */
function gatherValues(
  { model }: Trainer,
  share: ExpertShare | null,
  problems: string[],
): Float32Array {
  const layers = expertLayers(model);
  const values = model.parameters.list.flatMap((parameter) => {
    const layer = layers.find(({ parameters }) => parameters.includes(parameter));
    if (share === null || layer === undefined) return [...view(parameter.value)];
    const mine = parameter.value;
    const all = new Arena(mine.memory, "experts").allocate("f32", [
      share.ranks.size,
      mine.rows * mine.columns,
    ]);
    share.ranks.allGather(mine, all).wait();
    const each = elementsOfExpert(parameter);
    const copy = (place: number): Float32Array => view(all).slice(place * each, (place + 1) * each);
    return share.layer(layer.layerIndex).current.logicalToPhysical.flatMap(([first, ...others]) => {
      const expert = copy(first!);
      for (const other of others) {
        if (copy(other).every((value, index) => value === expert[index])) continue;
        problems.push(`${parameter.name}: places ${first} and ${other}`);
      }
      return [...expert];
    });
  });
  return Float32Array.from(values);
}

function resume(trainer: Trainer, { trainer: before, states }: Ended): void {
  for (const [index, { value }] of trainer.model.parameters.list.entries()) {
    view(value).set(view(before.model.parameters.list[index]!.value));
  }
  for (const [index, { bias }] of trainer.model.gateBiases.entries()) {
    view(bias).set(view(before.model.gateBiases[index]!.bias));
  }
  trainer.takeStates(states);
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
