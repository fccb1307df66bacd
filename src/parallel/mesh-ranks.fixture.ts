/** @file Ranks that open a mesh and tell whom they meet on each axis. */
import { CpuMemory } from "../device/cpu/memory.ts";
import { makeTensor } from "../tensor/tensor.ts";
import { view } from "../tensor/view.ts";
import type { RankContext } from "./communicator/rank-program.ts";
import { MESH_AXES, type MeshShape, openMesh } from "./mesh.ts";

export async function runRank(context: RankContext): Promise<Record<string, number[]>> {
  const memory = CpuMemory.create(null);
  const world = await context.join(memory);
  const mesh = openMesh(world, context.input as MeshShape);
  const met: Record<string, number[]> = {};
  for (const axis of [...MESH_AXES, "replicas"] as const) {
    const communicator = mesh[axis];
    const mine = makeTensor(memory, "i32", [1], memory.reserve(4));
    const all = makeTensor(memory, "i32", [communicator.size], memory.reserve(64));
    view(mine)[0] = world.rank;
    communicator.allGather(mine, all).wait();
    met[axis] = Array.from(view(all));
  }
  return met;
}
