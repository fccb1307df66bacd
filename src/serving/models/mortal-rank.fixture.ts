/** @file A rank of an engine of which the second one dies in the midst of the eighth pass. */
import type { RankContext } from "../../parallel/communicator/rank-program.ts";
import { runRank as runExpertRank } from "./expert-rank.ts";

export async function runRank(context: RankContext): Promise<void> {
  if (context.rank !== 1) return await runExpertRank(context);
  const join: RankContext["join"] = async (memory) => {
    const world = await context.join(memory);
    const broadcast = world.broadcast.bind(world);
    let numOrders = 0;
    world.broadcast = (tensor, root) => {
      if (++numOrders > 8) throw new Error("struck by lightning");
      return broadcast(tensor, root);
    };
    return world;
  };
  await runExpertRank({ ...context, join });
}
