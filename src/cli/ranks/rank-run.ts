/**
 * @file One rank of a training run: the first one leads, the others follow.
 *
 * The ranks of a machine share its threads. The leader has a second device with all of them for the
 * whole model, which is validated and sampled while the ranks rest. How a run ended travels as
 * plain data; a failure that is nobody's bug keeps its code that way.
 */
import { OperationalError } from "../../base/errors.ts";
import type { CpuDeviceOptions } from "../../device/cpu/cpu-device.ts";
import { tickingDevice } from "../../device/ticking-device.ts";
import { openCpuDevice } from "../../kernels/cpu.ts";
import type { RankContext } from "../../parallel/communicator/rank-program.ts";
import { isOrderly } from "../../training/pipeline/leading.ts";
import type { TrainingLayout } from "../../training/pipeline/training-layout.ts";
import {
  followRun,
  leadRun,
  type TrainRunOptions,
  type TrainRunSummary,
} from "../../training/run/train-run.ts";
import { sampleWriter } from "../samples.ts";

/** A run over ranks, to be led. */
export interface RankedRun
  extends Pick<TrainRunOptions, "out" | "settings" | "resume" | "observer" | "signal"> {
  readonly layout: TrainingLayout;
  readonly peakFlops: number;
  readonly hasSamples: boolean;
}

/** Threads of this rank, and of the whole model. */
export interface RankDevices {
  readonly rank: CpuDeviceOptions;
  readonly whole: CpuDeviceOptions;
}

export type RankedEnd =
  | { readonly kind: "followed" }
  | { readonly kind: "done"; readonly summary: TrainRunSummary }
  | {
      readonly kind: "failed";
      readonly code: OperationalError["code"];
      readonly message: string;
      readonly details: OperationalError["details"];
    };

/** `run` is used by the first rank alone. */
export async function runOneRank(
  context: RankContext,
  devices: RankDevices,
  run: RankedRun,
): Promise<RankedEnd> {
  await using device = await openCpuDevice(devices.rank);
  const world = await context.join(device.memory);
  if (world.rank > 0) {
    await followRun({ device, world });
    return { kind: "followed" };
  }
  await using wholeDevice = await openCpuDevice(devices.whole);
  const ticking = tickingDevice(wholeDevice, () => world.tick());
  const samples = run.hasSamples ? { writeSamples: sampleWriter(ticking) } : {};
  try {
    const summary = await leadRun({ ...run, ...samples, device, wholeDevice, world });
    return { kind: "done", summary };
  } catch (error) {
    if (!isOrderly(error)) throw error;
    const { code, message, details } = error;
    return { kind: "failed", code, message, details };
  }
}

/** The summary of a run that came to its end; what ended another one is thrown. */
export function summaryOf(end: RankedEnd): TrainRunSummary | null {
  if (end.kind === "followed") return null;
  if (end.kind === "done") return end.summary;
  throw new OperationalError(end.code, end.message, end.details);
}
