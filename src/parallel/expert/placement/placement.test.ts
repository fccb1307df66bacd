/** @file The published worked examples, and what holds for every placement and every plan. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { OperationalError } from "../../../base/errors.ts";
import { Random } from "../../../base/random.ts";
import { assignCheapest } from "./assignment.ts";
import { ExpertLoadHistory } from "./load-history.ts";
import { parseLoads } from "./parse-loads.ts";
import {
  gpuLoads,
  imbalance,
  isHierarchical,
  type PlacementShape,
  placeExperts,
  withSharedExpert,
} from "./place-experts.ts";
import { planMoves } from "./plan-moves.ts";

const LAYER_0 = [90, 132, 40, 61, 104, 165, 39, 4, 73, 56, 183, 86];
const LAYER_1 = [20, 107, 104, 64, 19, 197, 187, 157, 172, 86, 16, 27];
const HIERARCHICAL = { numPhysicalExperts: 16, numGroups: 4, numNodes: 2, numGpus: 8 };
const GLOBAL = { ...HIERARCHICAL, numGroups: 3 };

test("the published example comes out hierarchically, slot by slot", () => {
  const first = placeExperts(LAYER_0, HIERARCHICAL);
  assert.deepEqual(first.physicalToLogical, [5, 6, 5, 7, 8, 4, 3, 4, 10, 9, 10, 2, 0, 1, 11, 1]);
  assert.deepEqual(first.replicaCounts, [1, 2, 1, 1, 2, 2, 1, 1, 1, 1, 2, 1]);
  assert.deepEqual(first.logicalToPhysical, [
    [12],
    [15, 13],
    [11],
    [6],
    [7, 5],
    [0, 2],
    [1],
    [3],
    [4],
    [9],
    [8, 10],
    [14],
  ]);
  assert.deepEqual(gpuLoads(first, LAYER_0, 8), [121.5, 86.5, 125, 113, 147.5, 131.5, 156, 152]);
  const second = placeExperts(LAYER_1, HIERARCHICAL);
  assert.deepEqual(second.physicalToLogical, [7, 10, 6, 8, 6, 11, 8, 9, 2, 4, 5, 1, 5, 0, 3, 1]);
  assert.deepEqual(second.replicaCounts, [1, 2, 1, 1, 1, 2, 2, 1, 2, 1, 1, 1]);
  assert.deepEqual(second.logicalToPhysical, [
    [13],
    [15, 11],
    [8],
    [14],
    [9],
    [10, 12],
    [2, 4],
    [0],
    [6, 3],
    [7],
    [1],
    [5],
  ]);
  const loads = [173, 179.5, 120.5, 172, 123, 152, 118.5, 117.5];
  assert.deepEqual(gpuLoads(second, LAYER_1, 8), loads);
});

test("the same loads placed globally, as worked out for them", () => {
  const first = placeExperts(LAYER_0, GLOBAL);
  assert.deepEqual(first.physicalToLogical, [10, 6, 10, 7, 0, 2, 11, 4, 5, 9, 5, 4, 8, 3, 1, 1]);
  assert.deepEqual(gpuLoads(first, LAYER_0, 8), [130.5, 95.5, 130, 138, 138.5, 134.5, 134, 132]);
  const second = placeExperts(LAYER_1, GLOBAL);
  assert.deepEqual(second.physicalToLogical, [1, 10, 2, 4, 5, 11, 5, 0, 6, 7, 6, 3, 8, 8, 9, 7]);
  const loads = [123, 123, 125.5, 118.5, 172, 157.5, 172, 164.5];
  assert.deepEqual(gpuLoads(second, LAYER_1, 8), loads);
});

/** A shape that fits, and skewed loads for it; ties are frequent. */
function randomCase(random: Random): { shape: PlacementShape; load: number[] } {
  const numNodes = 1 + random.below(4);
  const numGpus = numNodes * (1 + random.below(4));
  const numGroups = random.below(2) === 0 ? numNodes * (1 + random.below(3)) : 1 + random.below(5);
  const numExperts = numGroups * (1 + random.below(6));
  const least = Math.ceil(numExperts / numGpus);
  const numPhysicalExperts = numGpus * (least + random.below(3));
  const shape = { numPhysicalExperts, numGroups, numNodes, numGpus };
  const load = Array.from({ length: numExperts }, () => Math.floor(1 / (0.01 + random.uniform())));
  return { shape, load };
}

test("every placement fills every slot, keeps groups on nodes, copies the loaded", () => {
  const seed = 7;
  const random = new Random(seed);
  for (let trial = 0; trial < 400; trial++) {
    const { shape, load } = randomCase(random);
    const at = `seed ${seed}, trial ${trial}`;
    const placement = placeExperts(load, shape);
    const { physicalToLogical, logicalToPhysical, replicaCounts } = placement;
    assert.deepEqual(placeExperts(load, shape), placement, at);
    assert.equal(physicalToLogical.length, shape.numPhysicalExperts, at);
    for (const [expert, slots] of logicalToPhysical.entries()) {
      assert.equal(slots.length, replicaCounts[expert], at);
      assert.ok(slots.length >= 1, at);
      for (const slot of slots) assert.equal(physicalToLogical[slot], expert, at);
    }
    const total = load.reduce((sum, value) => sum + value, 0);
    const borne = gpuLoads(placement, load, shape.numGpus).reduce((sum, value) => sum + value, 0);
    assert.ok(Math.abs(borne - total) < 1e-6 * total, at);
    if (isHierarchical(shape)) assertGroupsOnNodes(placement.physicalToLogical, shape, load.length);
    else assertFairReplicas(load, replicaCounts, at);
  }
});

function assertGroupsOnNodes(slots: readonly number[], shape: PlacementShape, numExperts: number) {
  const nodeOfGroup = new Map<number, number>();
  for (const [slot, expert] of slots.entries()) {
    const group = Math.floor((expert * shape.numGroups) / numExperts);
    const node = Math.floor((slot * shape.numNodes) / slots.length);
    assert.equal(nodeOfGroup.get(group) ?? node, node, "a group is on one node");
    nodeOfGroup.set(group, node);
  }
}

/** No expert bears more than another would have borne had it gone without its last replica. */
function assertFairReplicas(load: readonly number[], counts: readonly number[], at: string): void {
  const most = Math.max(...load.map((value, expert) => value / counts[expert]!));
  for (const [expert, count] of counts.entries()) {
    if (count > 1) assert.ok(load[expert]! / (count - 1) >= most, at);
  }
}

test("redundant experts bring a skewed load of 256 experts near to balance", () => {
  const random = new Random(11);
  const load = Array.from({ length: 256 }, () => 1000 * Math.exp(random.normal()));
  const shape = { numPhysicalExperts: 288, numGroups: 8, numNodes: 4, numGpus: 32 };
  const plain = { ...shape, numPhysicalExperts: 256 };
  const before = imbalance(gpuLoads(placeExperts(load, plain), load, 32));
  const after = imbalance(gpuLoads(placeExperts(load, shape), load, 32));
  assert.ok(before > 1.3 && after < 1.15, `${before} to ${after}`);
});

test("the shared expert is placed as a routed one that every token chooses", () => {
  const load = withSharedExpert([10, 30, 20], 60);
  const shape = { numPhysicalExperts: 6, numGroups: 1, numNodes: 1, numGpus: 6 };
  assert.deepEqual(placeExperts(load, shape).replicaCounts, [1, 2, 1, 2]);
});

test("shapes that do not divide are refused with the numbers", () => {
  const refused = (shape: Partial<PlacementShape>, message: RegExp): void =>
    assert.throws(
      () => placeExperts(LAYER_0, { ...HIERARCHICAL, ...shape }),
      (error) => error instanceof OperationalError && message.test(error.message),
    );
  refused({ numPhysicalExperts: 8 }, /replicas \(8\) must be at least the 12 experts/);
  refused({ numPhysicalExperts: 17 }, /gpus \(8\) must divide replicas \(17\)/);
  refused({ numNodes: 3 }, /nodes \(3\) must divide gpus \(8\)/);
  refused({ numGroups: 5 }, /groups \(5\) must divide 12 experts/);
});

test("a placement that only changes its names moves nothing", () => {
  const previous = placeExperts(LAYER_0, HIERARCHICAL);
  const turned = [
    ...previous.physicalToLogical.slice(8),
    ...previous.physicalToLogical.slice(0, 8),
  ];
  const swapped = turned.map((_, slot) => turned[slot ^ 1]!);
  const next = {
    ...previous,
    physicalToLogical: swapped,
    logicalToPhysical: previous.replicaCounts.map((_, expert) =>
      swapped.flatMap((held, slot) => (held === expert ? [slot] : [])),
    ),
  };
  const plan = planMoves(previous, next, HIERARCHICAL);
  assert.deepEqual(plan.moves, []);
  assert.deepEqual(plan.placement.physicalToLogical, previous.physicalToLogical);
});

test("a plan turns the old slots into the new placement, and balances as it does", () => {
  const seed = 3;
  const random = new Random(seed);
  for (let trial = 0; trial < 200; trial++) {
    const { shape, load } = randomCase(random);
    const previous = placeExperts(load, shape);
    const later = load.map((value) => Math.floor(value * (0.5 + random.uniform())));
    const next = placeExperts(later, shape);
    const { placement, moves } = planMoves(previous, next, shape);
    const slots = [...previous.physicalToLogical];
    for (const { expert, from, to } of moves) {
      assert.equal(previous.physicalToLogical[from], expert);
      slots[to] = expert;
    }
    const at = `seed ${seed}, trial ${trial}`;
    assert.deepEqual(slots, placement.physicalToLogical, at);
    const sorted = (values: readonly number[]): number[] =>
      values.map((value) => Math.round(value * 1e6)).toSorted((a, b) => a - b);
    assert.deepEqual(
      sorted(gpuLoads(placement, later, shape.numGpus)),
      sorted(gpuLoads(next, later, shape.numGpus)),
      at,
    );
  }
});

test("no other naming of the GPUs of a node moves less", () => {
  const random = new Random(5);
  for (let trial = 0; trial < 100; trial++) {
    const size = 1 + random.below(6);
    const cost = Array.from({ length: size }, () =>
      Array.from({ length: size }, () => random.below(5)),
    );
    const sum = (columns: readonly number[]): number =>
      columns.reduce((total, column, row) => total + cost[row]![column]!, 0);
    const chosen = assignCheapest(cost);
    assert.deepEqual(
      chosen.toSorted((a, b) => a - b),
      Array.from({ length: size }, (_, index) => index),
    );
    assert.equal(sum(chosen), Math.min(...permutations(size).map(sum)));
  }
});

function permutations(size: number): number[][] {
  if (size === 0) return [[]];
  return permutations(size - 1).flatMap((rest) =>
    Array.from({ length: size }, (_, place) => rest.toSpliced(place, 0, size - 1)),
  );
}

const AVERAGE = { kind: "movingAverage", decay: 0.75 } as const;
const WINDOW = { kind: "window", numCounts: 2 } as const;

test("history forgets smoothly as a moving average, at once as a window", () => {
  const average = new ExpertLoadHistory(2, AVERAGE);
  assert.deepEqual([...average.estimate()], [0, 0]);
  for (const load of [
    [8, 0],
    [0, 16],
  ])
    average.record(load);
  assert.deepEqual([...average.estimate()], [6, 4]);
  const window = new ExpertLoadHistory(2, WINDOW);
  assert.deepEqual([...window.estimate()], [0, 0]);
  for (const load of [
    [100, 0],
    [2, 4],
    [4, 0],
  ])
    window.record(load);
  assert.deepEqual([...window.estimate()], [3, 2]);
  // What another one remembers is gone on from as if it were one's own.
  for (const history of [average, window]) {
    const kind = history === average ? AVERAGE : WINDOW;
    const other = new ExpertLoadHistory(2, kind);
    other.record([1000, 1000]);
    other.recall(JSON.parse(JSON.stringify(history.remembered.map((load) => [...load]))));
    for (const one of [history, other]) one.record([7, 1]);
    assert.deepEqual(other.estimate(), history.estimate());
  }
});

const REFUSED: readonly (readonly [text: string, message: RegExp])[] = [
  ["", /loads\.json: it is not JSON/],
  ["[[1, 2], [3]", /not JSON/],
  ["{}", /loads are an array of numbers/],
  ["[]", /loads are an array of numbers/],
  ["[[1], 2]", /loads are an array of numbers/],
  ["[[]]", /layer 0 has no experts/],
  ["[[1, 2], [3]]", /layer 1 has 1 experts, layer 0 has 2/],
  ["[[1, -2]]", /layer 0, expert 1: -2 is not a number of tokens/],
  ["[[1, null]]", /expert 1: null is not/],
  ['[["9"]]', /expert 0: "9" is not/],
  ["[1e999]", /expert 0: null is not/],
];

for (const [text, message] of REFUSED) {
  test(`loads ${text === "" ? "that are empty" : text} are refused`, () => {
    assert.throws(
      () => parseLoads(text, "loads.json"),
      (error) => error instanceof OperationalError && message.test(error.message),
    );
  });
}

test("loads are one row a layer, or one row alone", () => {
  assert.deepEqual(parseLoads("[[1, 2], [3, 4]]", "a"), [
    [1, 2],
    [3, 4],
  ]);
  assert.deepEqual(parseLoads("[1, 2.5]", "a"), [[1, 2.5]]);
});
