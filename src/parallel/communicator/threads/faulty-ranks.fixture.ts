/** @file Ranks of which one goes wrong in the way its input says, while the others wait for it. */
import process from "node:process";
import { setTimeout as delay } from "node:timers/promises";
import { CpuMemory } from "../../../device/cpu/memory.ts";
import { makeTensor } from "../../../tensor/tensor.ts";
import type { RankContext } from "../rank-program.ts";

export type Fault = "throws" | "exits" | "hangs" | "mismatch" | "early" | "slow" | "idle";

export async function runRank(context: RankContext): Promise<string> {
  const fault = context.input as Fault;
  const isFaulty = context.rank === 1;
  if (isFaulty && fault === "early") throw new Error("broken before joining");
  const memory = CpuMemory.create(null);
  const world = await context.join(memory);
  const tensor = makeTensor(memory, "f32", [8], memory.reserve(64));
  world.allReduce(tensor, tensor, "sum").wait();
  if (isFaulty && fault === "throws") throw new Error("broken on purpose");
  if (isFaulty && fault === "exits") process.exit(3);
  if (isFaulty && fault === "hangs") for (;;);
  if (isFaulty && fault === "slow") {
    const end = performance.now() + 1200;
    while (performance.now() < end) world.tick();
  }
  if (fault === "idle") {
    if (isFaulty) await delay(1200);
    world.broadcast(tensor, 1).wait("processes");
  }
  if (isFaulty && fault === "mismatch") {
    world.send(makeTensor(memory, "f32", [4], memory.reserve(64)), 0).wait();
  }
  if (context.rank === 0 && fault === "mismatch") world.receive(tensor, 1).wait();
  world.barrier().wait();
  return "ended well";
}
