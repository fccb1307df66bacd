/**
 * @file What each rank of `bench/parallel.ts` does: the best of many short measurements, in
 * microseconds, by name. Rank 0's are printed.
 */
import { CpuMemory } from "../src/device/cpu/memory.ts";
import type { Communicator } from "../src/parallel/communicator/communicator.ts";
import type { RankContext } from "../src/parallel/communicator/rank-program.ts";
import { makeTensor, type Tensor } from "../src/tensor/tensor.ts";

const REPEATS = 7;
const WORK_MS = 20;

export interface Measured {
  readonly name: string;
  readonly bytes: number;
  readonly microseconds: number;
}

export async function runRank(context: RankContext): Promise<readonly Measured[]> {
  const memory = CpuMemory.create(null);
  const world = await context.join(memory);
  const make = (bytes: number): Tensor<"f32"> => {
    const tensor = makeTensor(memory, "f32", [bytes / 4], memory.reserve(bytes));
    // Pages that nobody has written are one page of zeros, and never leave the cache.
    memory.u8.fill(1, tensor.byteOffset, tensor.byteOffset + bytes);
    return tensor;
  };
  const measured: Measured[] = [];
  for (const bytes of [8, 2 ** 16, 2 ** 20, 2 ** 24]) {
    const source = make(bytes);
    const target = make(bytes);
    const iterations = bytes <= 2 ** 16 ? 300 : bytes <= 2 ** 20 ? 30 : 5;
    const best = (name: string, action: () => void, divisor = 1): void => {
      const microseconds = bestOf(world, iterations, action) / divisor;
      measured.push({ name, bytes, microseconds });
    };
    best("half round trip", () => pingPong(world, source, target), 2);
    if (bytes < 2 ** 16) continue;
    const counts = Array.from({ length: world.size }, () => bytes / 4 / world.size);
    const call = { source, sendCounts: counts, target, receiveCounts: counts };
    best("all-to-all", () => world.allToAll(call).wait());
    best("all-reduce f32", () => world.allReduce(source, target, "sum").wait());
    measured.push({ name: "left after work", bytes, microseconds: exposed(world, source, target) });
  }
  return measured;
}

/** What is still to wait for when both ranks have worked for a while beside an exchange. */
function exposed(world: Communicator, source: Tensor, target: Tensor): number {
  const peer = world.rank === 0 ? 1 : 0;
  let best = Number.POSITIVE_INFINITY;
  for (let repeat = 0; repeat < REPEATS; repeat++) {
    world.barrier().wait();
    const exchange = world.group(() => {
      world.receive(target, peer);
      world.send(source, peer);
    });
    const end = performance.now() + WORK_MS;
    while (performance.now() < end);
    exchange.wait();
    best = Math.min(best, 1000 * (performance.now() - end));
  }
  return best;
}

function pingPong(world: Communicator, source: Tensor, target: Tensor): void {
  if (world.rank === 0) {
    world.send(source, 1).wait();
    world.receive(target, 1).wait();
  } else if (world.rank === 1) {
    world.receive(target, 0).wait();
    world.send(source, 0).wait();
  }
}

/** Microseconds of one action, in the best of several batches. */
function bestOf(world: Communicator, iterations: number, action: () => void): number {
  let best = Number.POSITIVE_INFINITY;
  for (let repeat = 0; repeat < REPEATS; repeat++) {
    world.barrier().wait();
    const start = performance.now();
    for (let index = 0; index < iterations; index++) action();
    best = Math.min(best, (1000 * (performance.now() - start)) / iterations);
  }
  return best;
}
