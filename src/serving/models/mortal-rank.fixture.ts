/** @file A rank of an engine of which the second one dies in the midst of a pass. */
import type { RankContext } from "../../parallel/communicator/rank-program.ts";
import { runRank as runExpertRank } from "./expert-rank.ts";

export async function runRank(context: RankContext): Promise<void> {
  if (context.rank !== 1) return await runExpertRank(context);
  const join: RankContext["join"] = async (memory) => {
    const world = await context.join(memory);
    const broadcast = world.broadcast.bind(world);
    let numTold = 0;
    // An order to each pass, and in it how many tokens come in each layer.
    world.broadcast = (tensor, root) => {
      if (++numTold > 8) throw new Error("struck by lightning");
      return broadcast(tensor, root);
    };
    return world;
  };
  await runExpertRank({ ...context, join });
}
