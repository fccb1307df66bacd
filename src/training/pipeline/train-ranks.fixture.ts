/** @file Ranks that train a run; the first one leads. */
import { openCpuDevice } from "../../kernels/cpu.ts";
import type { RankContext } from "../../parallel/communicator/rank-program.ts";
import { followRun, leadRun } from "../run/train-run.ts";
import type { TrainingSettings } from "../settings.ts";
import { isOrderly } from "./leading.ts";
import type { TrainingLayout } from "./training-layout.ts";

export interface RankRunInput {
  readonly out: string;
  readonly settings: TrainingSettings;
  readonly layout: TrainingLayout;
  readonly resume: boolean;
}

/** How the run ended: null if well. */
export type RankRunReport = { readonly code: string; readonly message: string } | null;

export async function runRank(context: RankContext): Promise<RankRunReport> {
  await using device = await openCpuDevice({ numThreads: 1 });
  const world = await context.join(device.memory);
  if (world.rank > 0) {
    await followRun({ device, world });
    return null;
  }
  await using wholeDevice = await openCpuDevice({ numThreads: 1 });
  try {
    await leadRun({ ...(context.input as RankRunInput), device, wholeDevice, world });
    return null;
  } catch (error) {
    if (!isOrderly(error)) throw error;
    return { code: error.code, message: error.message };
  }
}
