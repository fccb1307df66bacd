/**
 * @file The exact state of a trainer on disk, beside the published weights of a checkpoint.
 *
 *     training-state/state.json            step, tokens, loader, loss trend, plan, seconds
 *     training-state/state.safetensors     bit for bit, F32 (moments kept in bf16: BF16):
 *         master.NAME                      the parameters (published weights are rounded)
 *         firstMoment.NAME, secondMoment.NAME, average.NAME
 *         routingBias.LAYER
 *
 * Random numbers are not stored: every draw follows from the seed, the epoch and the span
 * (data/batches.ts). Reading is strict: exactly these fields, and exactly these tensors in these
 * shapes, or an error that names the file and the first one that differs.
 */
import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { assert, OperationalError } from "../../base/errors.ts";
import { makeDirectories, writeFileAtomically } from "../../checkpoint/atomic.ts";
import { openSafetensors, writeSafetensors } from "../../checkpoint/safetensors.ts";
import type { TrainableModel } from "../../model/model-types.ts";
import { isContiguous, type Tensor } from "../../tensor/tensor.ts";
import { view } from "../../tensor/view.ts";
import type { RunPlan } from "../budget.ts";
import {
  finite,
  integer,
  listOf,
  orNull,
  readExactly,
  real,
  type Schema,
} from "../settings-schema.ts";
import { stateSlice } from "../spans.ts";
import type { Trainer, TrainerState } from "../trainer.ts";
import { PLAN } from "./stored-plan.ts";

const FOLDER = "training-state";
const FORMAT_VERSION = 1;

/** What is needed besides the tensors. */
export interface RunState {
  readonly formatVersion: number;
  readonly trainer: TrainerState;
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

interface NamedTensor {
  readonly name: string;
  readonly tensor: Tensor;
}

/** Whether the checkpoint can be trained on. */
export function hasTrainingState(checkpoint: string): boolean {
  return existsSync(join(checkpoint, FOLDER, "state.json"));
}

/** Write the trainer's state into `directory`, a checkpoint that is being written. */
export function writeTrainingState(
  directory: string,
  trainer: Trainer,
  run: { readonly seconds: number },
): void {
  const folder = join(directory, FOLDER);
  makeDirectories(folder);
  const state: RunState = {
    formatVersion: FORMAT_VERSION,
    trainer: trainer.state,
    plan: trainer.plan ?? null,
    seconds: run.seconds,
  };
  const sources = listTensors(trainer).map(({ name, tensor }) => ({
    name,
    dtype: storedDtype(tensor),
    shape: tensor.shape,
    data: () => viewBytes(tensor),
  }));
  writeSafetensors(join(folder, "state.safetensors"), sources, {});
  writeFileAtomically(join(folder, "state.json"), `${JSON.stringify(state, null, 2)}\n`);
}

/**
 * Fill the trainer from a checkpoint; afterwards it goes on as the one that wrote it would have.
 */
export function readTrainingState(checkpoint: string, trainer: Trainer): RunState {
  const folder = join(checkpoint, FOLDER);
  const path = join(folder, "state.json");
  const state = readState(path);
  requireLoads(path, state.trainer.recentLoads, trainer.model);
  fillTensors(join(folder, "state.safetensors"), listTensors(trainer));
  trainer.restore(state.trainer);
  trainer.plan = state.plan ?? undefined;
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
  fillTensors(path, [...averages, ...listBiases(model)], { allowOthers: true });
  model.parameters.refreshCompute();
}

function readState(path: string): RunState {
  const refuse = (problem: string, cause?: unknown): OperationalError =>
    new OperationalError(
      "checkpoint.trainingState",
      `${path}: ${problem}; resume from a checkpoint whose training state is whole`,
      { path },
      cause,
    );
  let content: unknown;
  try {
    content = JSON.parse(readFileSync(path, "utf8"));
  } catch (error) {
    const reason = error instanceof Error ? error.message : String(error);
    throw refuse(`cannot be read (${reason})`, error);
  }
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

/** Everything of the trainer that lies in tensors. */
function listTensors(trainer: Trainer): readonly NamedTensor[] {
  const { parameters } = trainer.model;
  const states = [...trainer.optimizer.state];
  if (trainer.average !== undefined) states.push(trainer.average.state);
  return [
    ...parameters.list.map(({ name, value }) => ({ name: `master.${name}`, tensor: value })),
    ...states.flatMap((state) =>
      parameters.list.map((parameter) => ({
        name: `${state.kind}.${parameter.name}`,
        tensor: stateSlice(parameters, parameter, state),
      })),
    ),
    ...listBiases(trainer.model),
  ];
}

function listBiases(model: Pick<TrainableModel, "gateBiases">): readonly NamedTensor[] {
  return model.gateBiases.map(({ layerIndex, bias }) => ({
    name: `routingBias.${layerIndex}`,
    tensor: bias,
  }));
}

function fillTensors(
  path: string,
  wanted: readonly NamedTensor[],
  options: { readonly allowOthers: boolean } = { allowOthers: false },
): void {
  using file = openSafetensors(path);
  const refuse = (problem: string): OperationalError =>
    new OperationalError(
      "checkpoint.trainingState",
      `${path}: ${problem}; resume with the settings the run was started with`,
      { path },
    );
  for (const { name, tensor } of wanted) {
    const stored = file.tensors.get(name);
    if (stored === undefined) throw refuse(`there is no tensor ${name}`);
    const dtype = storedDtype(tensor);
    if (stored.dtype !== dtype || stored.shape.join() !== tensor.shape.join()) {
      throw refuse(
        `${name} is ${stored.dtype} [${stored.shape.join(", ")}], ` +
          `not ${dtype} [${tensor.shape.join(", ")}]`,
      );
    }
  }
  if (!options.allowOthers && file.tensors.size !== wanted.length) {
    const names = new Set(wanted.map(({ name }) => name));
    const other = [...file.tensors.keys()].find((name) => !names.has(name));
    throw refuse(`the tensor ${other} belongs to no part of this run`);
  }
  for (const { name, tensor } of wanted) file.readInto(name, viewBytes(tensor));
}

function storedDtype({ dtype }: Tensor): "F32" | "BF16" {
  if (dtype === "f32") return "F32";
  if (dtype === "bf16") return "BF16";
  throw new OperationalError("training.precision", "only f32 runs can be stored");
}

function viewBytes(tensor: Tensor): Uint8Array {
  assert(isContiguous(tensor), "state lies in contiguous tensors");
  const elements = view(tensor);
  return new Uint8Array(elements.buffer, elements.byteOffset, elements.byteLength);
}
