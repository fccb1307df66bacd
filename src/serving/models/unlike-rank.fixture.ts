/** @file A rank of an engine of which the second one was given other weights than the first. */
import type { RankContext } from "../../parallel/communicator/rank-program.ts";
import type { ExpertRankInput } from "./expert-engine.ts";
import { runRank as runExpertRank } from "./expert-rank.ts";

export async function runRank(context: RankContext): Promise<void> {
  const input = context.input as ExpertRankInput;
  const weights = context.rank === 1 ? "int8" : input.weights;
  await runExpertRank({ ...context, input: { ...input, weights } });
}
