/** @file What the flags of a verb and the launcher of this process say of ranks. */
import { counted } from "../../base/counted.ts";
import { OperationalError } from "../../base/errors.ts";
import { formatLayout, numRanksOf, parseLayout } from "../../parallel/mesh.ts";
import type { ScheduleKind } from "../../parallel/pipeline/schedules/kinds.ts";
import type { TrainingLayout } from "../../training/pipeline/training-layout.ts";
import type { Context } from "../verb.ts";
import { launchedRanks, ranksOfThisHost } from "./launcher.ts";

export interface RankFlags {
  readonly ranks?: number | undefined;
  readonly layout?: string | undefined;
  readonly schedule?: ScheduleKind | undefined;
  readonly "redundant-experts"?: number | undefined;
  readonly "rebalance-steps"?: number | undefined;
}

/** Where experts have copies and nothing else is said; by feel. */
const REBALANCE_STEPS = 100;

/**
 * Null without ranks. One pipeline over all of them where no layout is given, by DualPipe; where
 * every stage is on each rank, micro-batches run one after the other.
 */
export function layoutAsked(flags: RankFlags, env: Context["env"]): TrainingLayout | null {
  const launched = launchedRanks(env);
  if (launched !== undefined && (flags.ranks ?? launched) !== launched) {
    throw new OperationalError(
      "usage.ranks",
      `--ranks ${flags.ranks}: the launcher has started ${launched}; leave --ranks away under it`,
    );
  }
  const numRanks = launched ?? flags.ranks ?? 1;
  const mesh =
    flags.layout === undefined ? { pp: numRanks, ep: 1, dp: 1 } : parseLayout(flags.layout);
  if (numRanksOf(mesh) !== numRanks) throw refusalOf(mesh, numRanks, launched !== undefined);
  const experts = followingExperts(flags, mesh);
  if (numRanks === 1) {
    if (flags.schedule === undefined) return null;
    throw new OperationalError("usage.schedule", "--schedule is of ranks; give --ranks N too");
  }
  const schedule = flags.schedule ?? (mesh.pp === 1 ? "1f1b" : "dualpipe");
  const ranksPerHost = ranksOfThisHost(env) ?? numRanks;
  return { mesh, schedule, ranksPerHost, ...(experts === undefined ? {} : { experts }) };
}

/** Experts stay where they begin unless a flag is given. */
function followingExperts(flags: RankFlags, { ep }: TrainingLayout["mesh"]) {
  const names = ["redundant-experts", "rebalance-steps"] as const;
  const given = names.find((name) => flags[name] !== undefined);
  if (given === undefined) return undefined;
  if (ep === 1) {
    throw new OperationalError(
      "usage.layout",
      `--${given} ${flags[given]} is of ranks that share experts; give --ranks N and a --layout ` +
        "with them, such as --ranks 2 --layout ep=2",
    );
  }
  const numRedundant = flags["redundant-experts"] ?? 0;
  return { numRedundant, rebalanceSteps: flags["rebalance-steps"] ?? REBALANCE_STEPS };
}

function refusalOf(mesh: TrainingLayout["mesh"], numRanks: number, isLaunched: boolean) {
  const asked = numRanksOf(mesh);
  const wider = { ...mesh, dp: (mesh.dp * numRanks) / asked };
  const remedies = [
    isLaunched ? `start ${asked}` : `give --ranks ${asked}`,
    ...(numRanks > 1 && numRanks % asked === 0 ? [`take --layout ${formatLayout(wider)}`] : []),
  ];
  return new OperationalError(
    "usage.layout",
    `--layout ${formatLayout(mesh)} is of ${counted(asked, "rank")} and there ` +
      `${numRanks === 1 ? "is 1" : `are ${numRanks}`}; ${remedies.join(", or ")}`,
  );
}
