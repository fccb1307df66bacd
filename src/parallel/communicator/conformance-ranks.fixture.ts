/**
 * @file The conformance suite of communicators: what every rank does and checks, whatever carries
 * the messages. Each case is collective; a rank's result lists what it found wrong.
 */

import { Random } from "../../base/random.ts";
import { CpuMemory } from "../../device/cpu/memory.ts";
import { roundToBf16 } from "../../numerics/bf16.ts";
import type { DType } from "../../tensor/dtype.ts";
import { makeTensor, type Tensor } from "../../tensor/tensor.ts";
import { view } from "../../tensor/view.ts";
import type { Communicator, Operation } from "./communicator.ts";
import type { RankContext } from "./rank-program.ts";

interface Rank {
  readonly world: Communicator;
  readonly memory: CpuMemory;
  make<D extends DType>(dtype: D, count: number, value?: (index: number) => number): Tensor<D>;
  expect(tensor: Tensor, value: (index: number) => number, what: string): void;
}

type Case = (rank: Rank) => void;

const CASES: Readonly<Record<string, Case>> = {
  "messages of a channel keep their order, those of another overtake": ({
    world,
    make,
    expect,
  }) => {
    const { rank, size } = world;
    const next = (rank + 1) % size;
    const previous = (rank + size - 1) % size;
    const sent = Array.from({ length: 5 }, (_, index) => make("i32", 3, () => rank * 100 + index));
    const operations = sent.map((tensor, index) => world.send(tensor, next, index % 2));
    const odd = [make("i32", 3), make("i32", 3)];
    const even = [make("i32", 3), make("i32", 3), make("i32", 3)];
    for (const tensor of odd) operations.push(world.receive(tensor, previous, 1));
    for (const tensor of even) operations.push(world.receive(tensor, previous, 0));
    for (const operation of operations.toReversed()) operation.wait();
    for (const [index, tensor] of even.entries())
      expect(tensor, () => previous * 100 + 2 * index, "even");
    for (const [index, tensor] of odd.entries())
      expect(tensor, () => previous * 100 + 2 * index + 1, "odd");
  },
  "messages of no bytes arrive": ({ world, make }) => {
    const next = (world.rank + 1) % world.size;
    const previous = (world.rank + world.size - 1) % world.size;
    const group = world.group(() => {
      world.send(make("f32", 0), next);
      world.receive(make("f32", 0), previous);
    });
    group.wait();
  },
  "a rank sends to itself": ({ world, make, expect }) => {
    const target = make("u8", 7);
    const received = world.receive(target, world.rank);
    world
      .send(
        make("u8", 7, (index) => index + 1),
        world.rank,
      )
      .wait();
    received.wait();
    expect(target, (index) => index + 1, "own message");
  },
  "hundreds of messages are under way both ways": ({ world, make, expect }) => {
    const { rank, size } = world;
    const targets: { tensor: Tensor<"f64">; from: number; index: number }[] = [];
    const operations: Operation[] = [];
    for (let index = 0; index < 200; index++) {
      for (let peer = 0; peer < size; peer++) {
        const tensor = make("f64", 1 + (index % 5));
        targets.push({ tensor, from: peer, index });
        operations.push(
          world.send(
            make("f64", 1 + (index % 5), () => rank + index / 1000),
            peer,
            9,
          ),
        );
      }
    }
    for (const { tensor, from } of targets) operations.push(world.receive(tensor, from, 9));
    for (const operation of operations) operation.wait();
    for (const { tensor, from, index } of targets)
      expect(tensor, () => from + index / 1000, "many");
  },
  "large messages cross whole, and memory may grow on the way": ({
    world,
    make,
    expect,
    memory,
  }) => {
    const count = 3_000_001;
    const next = (world.rank + 1) % world.size;
    const previous = (world.rank + world.size - 1) % world.size;
    const target = make("u8", count);
    const received = world.receive(target, previous);
    memory.reserve(40 * 2 ** 20);
    const sent = world.send(
      make("u8", count, (index) => (index * 7 + world.rank) & 255),
      next,
    );
    received.wait();
    sent.wait();
    expect(target, (index) => (index * 7 + previous) & 255, "large");
  },
  "uneven all-to-all, with empty parts": ({ world, make, expect }) => {
    const { rank, size } = world;
    const countOf = (from: number, to: number): number => ((from * 131 + to * 17) % 5) * 1001;
    const sendCounts = Array.from({ length: size }, (_, to) => countOf(rank, to));
    const receiveCounts = Array.from({ length: size }, (_, from) => countOf(from, rank));
    const startOf = (counts: readonly number[], index: number): number =>
      counts.slice(0, index).reduce((sum, count) => sum + count, 0);
    const ownerOf = (counts: readonly number[], index: number): number =>
      counts.findLastIndex((_, peer) => startOf(counts, peer) <= index && counts[peer] !== 0);
    const total = (counts: readonly number[]): number => startOf(counts, counts.length);
    const source = make(
      "i32",
      total(sendCounts),
      (index) => rank * 1000 + ownerOf(sendCounts, index),
    );
    const target = make("i32", total(receiveCounts));
    world.allToAll({ source, sendCounts, target, receiveCounts }).wait();
    expect(target, (index) => ownerOf(receiveCounts, index) * 1000 + rank, "all-to-all");
  },
  "sums run in the order of ranks and are rounded once": ({ world, make, expect }) => {
    const { rank, size } = world;
    const count = 100_003;
    const normals = Array.from({ length: size }, (_, from) => {
      const random = new Random(from);
      return Array.from({ length: 97 }, () => random.normal());
    });
    const valueFrom = (from: number, index: number): number =>
      Math.fround(normals[from]![index % 97]! * 10 ** ((index % 7) - 3));
    const expected = (index: number): number => {
      let sum = 0;
      for (let from = 0; from < size; from++) sum += valueFrom(from, index);
      return Math.fround(sum);
    };
    const tensor = make("f32", count, (index) => valueFrom(rank, index));
    const out = make("f32", count);
    world.allReduce(tensor, out, "sum").wait();
    expect(out, (index) => expected(index), "into another tensor");
    world.allReduce(tensor, tensor, "sum").wait();
    expect(tensor, (index) => expected(index), "in place");
  },
  "every reduction of every dtype, of fewer elements than ranks too": ({ world, make, expect }) => {
    const { rank, size } = world;
    for (const count of [0, 1, 5]) {
      for (const dtype of ["f32", "f64", "i32", "bf16"] as const) {
        const sum = make(dtype, count, (index) => index + rank);
        const max = make(dtype, count, (index) => index + rank);
        const min = make(dtype, count, (index) => index + rank);
        world.allReduce(sum, sum, "sum").wait();
        world.allReduce(max, max, "max").wait();
        world.allReduce(min, min, "min").wait();
        const ranks = (size * (size - 1)) / 2;
        expect(sum, (index) => roundToBf16(index * size + ranks), `sum of ${dtype}`);
        expect(max, (index) => index + size - 1, `max of ${dtype}`);
        expect(min, (index) => index, `min of ${dtype}`);
      }
    }
  },
  "reduce-scatter and all-gather are the halves of all-reduce": ({ world, make, expect }) => {
    const { rank, size } = world;
    const share = 40_001;
    const source = make("f32", share * size, (index) => rank + (index % 11));
    const mine = make("f32", share);
    world.reduceScatter(source, mine, "sum").wait();
    const sum = (size * (size - 1)) / 2;
    expect(mine, (index) => sum + size * ((rank * share + index) % 11), "the share");
    const whole = make("f32", share * size);
    world.allGather(mine, whole).wait();
    expect(whole, (index) => sum + size * (index % 11), "the whole");
  },
  "parts may differ, be empty, and stand in their places already": ({ world, make, expect }) => {
    const { rank, size } = world;
    // Rank 0 has nothing; the last has more than one round.
    const counts = Array.from({ length: size }, (_, index) => index * 150_000);
    const before = (index: number): number => counts.slice(0, index).reduce((a, b) => a + b, 0);
    const all = make("f32", before(size), (index) => rank + (index % 11));
    const byteOffset = all.byteOffset + 4 * before(rank);
    const mine = makeTensor(all.memory, "f32", [counts[rank]!], byteOffset);
    world.reduceScatter(all, mine, "sum", counts).wait();
    const sum = (size * (size - 1)) / 2;
    expect(mine, (index) => sum + size * ((before(rank) + index) % 11), "the share");
    world.allGather(mine, all, counts).wait();
    expect(all, (index) => sum + size * (index % 11), "the whole");
  },
  "collectives under way together do not mistake each other": ({ world, make, expect }) => {
    const { rank, size } = world;
    const count = 90_000;
    const tensors = [1, 2, 3].map((factor) => make("f32", count, () => rank * factor));
    const operations = tensors.map((tensor) => world.allReduce(tensor, tensor, "sum"));
    const roots = make("i32", 4, () => (rank === size - 1 ? 42 : 0));
    operations.push(world.broadcast(roots, size - 1), world.barrier());
    for (const operation of operations.toReversed()) operation.wait();
    const sum = (size * (size - 1)) / 2;
    for (const [index, tensor] of tensors.entries())
      expect(tensor, () => sum * (index + 1), "sums");
    expect(roots, () => 42, "broadcast");
  },
  "a rank that waits for one thing carries on with all": ({ world, make, expect }) => {
    const { rank, size } = world;
    if (size < 2) return;
    const tensor = make("f32", 200_000, () => rank);
    const reduced = world.allReduce(tensor, tensor, "sum");
    const word = make("i32", 1, () => 7);
    // Rank 0 waits for the message first; rank 1 sends it only after the reduction.
    if (rank === 0) world.receive(word, 1).wait();
    reduced.wait();
    if (rank === 1) world.send(word, 0).wait();
    expect(tensor, () => (size * (size - 1)) / 2, "the sum");
  },
  "a split orders by key, leaves out who wants out, and keeps messages apart": (state) => {
    const { world, make, expect } = state;
    const { rank, size } = world;
    const half = world.split(rank % 2, -rank, "half");
    const some = world.split(rank === 0 ? null : 0, rank, "some");
    if (half === null || (some === null) !== (rank === 0)) throw new Error("wrong membership");
    const members = Array.from({ length: size }, (_, other) => other)
      .filter((other) => other % 2 === rank % 2)
      .toReversed();
    if (half.rank !== members.indexOf(rank) || half.size !== members.length)
      throw new Error("order");
    const inHalf = make("i32", 1, () => rank);
    const inWorld = make("i32", 1, () => rank);
    const inSome = make("i32", 1, () => rank);
    const operations = [
      half.allReduce(inHalf, inHalf, "sum"),
      world.allReduce(inWorld, inWorld, "sum"),
    ];
    if (some !== null) operations.unshift(some.allReduce(inSome, inSome, "max"));
    for (const operation of operations.toReversed()) operation.wait();
    expect(inHalf, () => members.reduce((sum, member) => sum + member, 0), "half");
    expect(inWorld, () => (size * (size - 1)) / 2, "world");
    if (some !== null) expect(inSome, () => size - 1, "some");
  },
};

export const CASE_NAMES: readonly string[] = Object.keys(CASES);

/** What each case found wrong on this rank: "" for nothing. */
export async function runRank(context: RankContext): Promise<Record<string, string>> {
  const memory = CpuMemory.create(null);
  const world = await context.join(memory);
  const found: Record<string, string> = {};
  for (const [name, run] of Object.entries(CASES)) {
    const problems: string[] = [];
    const rank: Rank = {
      world,
      memory,
      make: (dtype, count, value = () => 0) => {
        const tensor = makeTensor(memory, dtype, [count], memory.reserve(count * 8));
        const values = view(tensor);
        for (let index = 0; index < count; index++) values[index] = codeOf(dtype, value(index));
        return tensor;
      },
      expect: (tensor, value, what) => {
        const values = view(tensor);
        const wrong = values.findIndex(
          (code, index) => code !== codeOf(tensor.dtype, value(index)),
        );
        if (wrong >= 0) problems.push(`${what}: [${wrong}] is ${values[wrong]}`);
      },
    };
    try {
      run(rank);
    } catch (error) {
      problems.push(String(error));
    }
    found[name] = problems.join("; ");
  }
  return found;
}

/** bf16 in tests holds small whole numbers, whose codes are the upper half of f32's. */
function codeOf(dtype: DType, value: number): number {
  if (dtype !== "bf16") return value;
  const words = new DataView(new ArrayBuffer(4));
  words.setFloat32(0, value);
  return words.getUint16(0);
}
