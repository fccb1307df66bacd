/**
 * @file The exact state of a trainer on disk, beside the published weights of a checkpoint.
 *
 *     training-state/state.json            step, tokens, loader, loss trend, plan, seconds
 *     training-state/state.safetensors     bit for bit, F32 (moments kept in bf16: BF16):
 *         master.NAME                      the parameters (published weights are rounded)
 *         firstMoment.NAME, secondMoment.NAME, average.NAME
 *         routingBias.LAYER
 *     training-state/experts.json          only where experts follow their load: what is remembered
 *                                          of it, and where they are
 *
 * Random numbers are not stored: every draw follows from the seed, the epoch and the span
 * (data/batches.ts). Reading is strict: exactly these fields, and exactly these tensors in these
 * shapes, or an error that names the file and the first one that differs.
 */
import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { OperationalError, reasonOf } from "../../base/errors.ts";
import { makeDirectories, writeFileAtomically } from "../../checkpoint/atomic.ts";
import { finiteTensors } from "../../checkpoint/finite-tensors.ts";
import { openSafetensors, writeSafetensors } from "../../checkpoint/safetensors.ts";
import type { ModelConfig } from "../../model/config.ts";
import type { TrainableModel } from "../../model/model-types.ts";
import type { DType } from "../../tensor/dtype.ts";
import type { RunPlan } from "../budget.ts";
import type { ExpertsState } from "../expert-balance/expert-balancer.ts";
import {
  finite,
  integer,
  listOf,
  orNull,
  readExactly,
  real,
  type Schema,
} from "../settings-schema.ts";
import type { TrainerState } from "../trainer.ts";
import { biasTensors, type StateTensor, stateTensor } from "./state-tensors.ts";
import { PLAN } from "./stored-plan.ts";
import type { Training } from "./training.ts";

const FOLDER = "training-state";
const EXPERTS_FILE = "experts.json";
const FORMAT_VERSION = 1;

/** What is needed besides the tensors. */
export interface RunState {
  readonly formatVersion: number;
  readonly trainer: Omit<TrainerState, "experts">;
  readonly plan: RunPlan | null;
  /** Training time so far. */
  readonly seconds: number;
}

const RUN_STATE: Schema<RunState> = {
  formatVersion: integer(1),
  trainer: {
    step: integer(0),
    tokens: integer(0),
    loader: { epoch: integer(0), place: integer(0), offset: integer(0), numSpans: integer(0) },
    trend: { count: integer(0), mean: finite, variance: real(0) },
    recentLoads: listOf(listOf(real(0))),
  },
  plan: orNull(PLAN),
  seconds: real(0),
};

const EXPERTS: Schema<ExpertsState> = {
  numRanks: integer(1),
  loads: listOf(listOf(listOf(real(0)))),
  places: listOf(listOf(listOf(integer(0)))),
};

/** Whether the checkpoint can be trained on. */
export function hasTrainingState(checkpoint: string): boolean {
  return existsSync(join(checkpoint, FOLDER, "state.json"));
}

/** Write the state of a training into `directory`, a checkpoint that is being written. */
export function writeTrainingState(
  directory: string,
  training: Training,
  run: { readonly seconds: number },
): void {
  const folder = join(directory, FOLDER);
  makeDirectories(folder);
  const { experts, ...trainer } = training.state;
  const state: RunState = {
    formatVersion: FORMAT_VERSION,
    trainer,
    plan: training.plan ?? null,
    seconds: run.seconds,
  };
  const sources = training.tensors.map(({ name, dtype, shape, read }) => ({
    name,
    dtype: storedDtype(dtype),
    shape,
    data: read,
  }));
  writeSafetensors(join(folder, "state.safetensors"), sources, {});
  if (experts !== undefined) {
    writeFileAtomically(join(folder, EXPERTS_FILE), `${JSON.stringify(experts)}\n`);
  }
  writeFileAtomically(join(folder, "state.json"), `${JSON.stringify(state, null, 2)}\n`);
}

/**
 * Fill the training from a checkpoint; afterwards it goes on as the one that wrote it would have.
 */
export function readTrainingState(
  checkpoint: string,
  training: Training,
  config: ModelConfig,
): RunState {
  const folder = join(checkpoint, FOLDER);
  const path = join(folder, "state.json");
  const state = readState(path);
  const { moeLayerIndices } = training;
  requireLoads(path, state.trainer.recentLoads, { moeLayerIndices, config });
  fillTensors(join(folder, "state.safetensors"), training.tensors);
  const experts = readExperts(join(folder, EXPERTS_FILE), { moeLayerIndices, config });
  const trainer = { ...state.trainer, ...(experts === undefined ? {} : { experts }) };
  training.restore(trainer, state.plan ?? undefined);
  return state;
}

/**
 * Fill a model with the moving average of a checkpoint instead of its last weights; biases are not
 * averaged.
 */
export function readAverage(
  checkpoint: string,
  model: Pick<TrainableModel, "parameters" | "gateBiases">,
): void {
  const path = join(checkpoint, FOLDER, "state.safetensors");
  const averages = model.parameters.list.map(({ name, value }) => ({
    name: `average.${name}`,
    tensor: value,
  }));
  const wanted = [...averages, ...biasTensors(model)].map(stateTensor);
  fillTensors(path, wanted, { allowOthers: true });
  model.parameters.refreshCompute();
}

/** Of a file of the state that is not whole. */
function refusalOf(path: string, problem: string, cause?: unknown): OperationalError {
  return new OperationalError(
    "checkpoint.trainingState",
    `${path}: ${problem}; resume from a checkpoint whose training state is whole`,
    { path },
    cause,
  );
}

function readJson(path: string): unknown {
  try {
    return JSON.parse(readFileSync(path, "utf8"));
  } catch (error) {
    throw refusalOf(path, `cannot be read (${reasonOf(error)})`, error);
  }
}

/** Undefined where experts did not follow their load. */
function readExperts(
  path: string,
  { moeLayerIndices, config }: Pick<TrainableModel, "moeLayerIndices" | "config">,
): ExpertsState | undefined {
  if (!existsSync(path)) return undefined;
  const refuse = (problem: string): OperationalError => refusalOf(path, problem);
  const state = readExactly(EXPERTS, readJson(path), refuse);
  const { loads, places } = state;
  const numExperts = config.numRoutedExperts;
  const isOfModel =
    loads.length === moeLayerIndices.length &&
    loads.every((layer) => layer.every((load) => load.length === numExperts)) &&
    places.length === moeLayerIndices.length &&
    places.every((layer) => layer.length === numExperts && layer.every((of) => of.length > 0));
  if (!isOfModel) {
    throw refuse(`it must have ${moeLayerIndices.length} layers of ${numExperts} experts`);
  }
  const numPlaces = places[0]?.flat().length;
  for (const layer of places) {
    const ordered = layer.flat().toSorted((a, b) => a - b);
    if (ordered.length === numPlaces && ordered.every((place, index) => place === index)) continue;
    throw refuse("every place must hold one expert, and all layers have as many places");
  }
  return state;
}

function readState(path: string): RunState {
  const refuse = (problem: string): OperationalError => refusalOf(path, problem);
  const content = readJson(path);
  // Before the fields: another version has others.
  const version = (content as { formatVersion?: unknown } | null)?.formatVersion;
  if (typeof version === "number" && version !== FORMAT_VERSION) {
    throw refuse(`formatVersion ${version} is not the ${FORMAT_VERSION} that this hadal reads`);
  }
  return readExactly(RUN_STATE, content, refuse);
}

/** Loads of another model would go unnoticed: they are only added to. */
function requireLoads(
  path: string,
  loads: TrainerState["recentLoads"],
  { moeLayerIndices, config }: Pick<TrainableModel, "moeLayerIndices" | "config">,
): void {
  const isOfModel =
    loads.length === moeLayerIndices.length &&
    loads.every((layer) => layer.length === config.numRoutedExperts);
  if (loads.length === 0 || isOfModel) return;
  throw new OperationalError(
    "checkpoint.trainingState",
    `${path}: trainer.recentLoads must have ${moeLayerIndices.length} lists of ` +
      `${config.numRoutedExperts} numbers, or none; resume with the run's own model`,
    { path },
  );
}

function fillTensors(
  path: string,
  wanted: readonly StateTensor[],
  options: { readonly allowOthers: boolean } = { allowOthers: false },
): void {
  using file = finiteTensors(openSafetensors(path));
  const refuse = (problem: string): OperationalError =>
    new OperationalError(
      "checkpoint.trainingState",
      `${path}: ${problem}; resume with the settings the run was started with`,
      { path },
    );
  for (const { name, shape, ...tensor } of wanted) {
    const stored = file.tensors.get(name);
    if (stored === undefined) throw refuse(`there is no tensor ${name}`);
    const dtype = storedDtype(tensor.dtype);
    if (stored.dtype !== dtype || stored.shape.join() !== shape.join()) {
      throw refuse(
        `${name} is ${stored.dtype} [${stored.shape.join(", ")}], ` +
          `not ${dtype} [${shape.join(", ")}]`,
      );
    }
  }
  if (!options.allowOthers && file.tensors.size !== wanted.length) {
    const names = new Set(wanted.map(({ name }) => name));
    const other = [...file.tensors.keys()].find((name) => !names.has(name));
    throw refuse(`the tensor ${other} belongs to no part of this run`);
  }
  for (const { name, fill } of wanted) fill((target) => file.readInto(name, target));
}

function storedDtype(dtype: DType): "F32" | "BF16" {
  if (dtype === "f32") return "F32";
  if (dtype === "bf16") return "BF16";
  throw new OperationalError("training.precision", "only f32 runs can be stored");
}
