/**
 * @file Where physical experts live, so that no GPU waits for a hot one: redundant copies of loaded
 * experts, packed evenly. The balancer that DeepSeek released as EPLB.
 *
 *   load_E              tokens (or any measure of work) of each logical expert of one layer
 *   physicalToLogical_R logical expert in each physical slot; slot = GPU·(R÷D) + place on the GPU
 *   logicalToPhysical   slots of each logical expert, in the order its replicas were made
 *   replicaCounts_E     how many they are; a replica bears load ÷ count
 *
 * If the nodes divide the expert groups, the policy is hierarchical: (a) groups onto nodes, so that
 * node-limited routing stays inside a node; (b) replicas within each node; (c) replicas onto its
 * GPUs. Otherwise it is global: the same with one group and one node.
 *
 * Ties go to the lowest index everywhere, so that a load has one placement on every machine.
 * Sources: DeepSeek-V3 report §3.4; the published description of EPLB and its worked example.
 */
import { assert, OperationalError } from "../../../base/errors.ts";
import { divExact, isIntegerIn } from "../../../base/integers.ts";

/** How many there are of everything. */
export interface PlacementShape {
  readonly numPhysicalExperts: number;
  readonly numGroups: number;
  readonly numNodes: number;
  readonly numGpus: number;
}

/** One layer's placement. */
export interface Placement {
  readonly physicalToLogical: readonly number[];
  readonly logicalToPhysical: readonly (readonly number[])[];
  readonly replicaCounts: readonly number[];
}

/** A physical expert before it has a slot: which logical expert, and its how-manieth replica. */
interface Replica {
  readonly expert: number;
  readonly rank: number;
}

/** What is wrong with a shape for `numExperts` logical experts, or null. */
export function refuseShape(shape: PlacementShape, numExperts: number): string | null {
  const { numPhysicalExperts, numGroups, numNodes, numGpus } = shape;
  if (numPhysicalExperts < numExperts) {
    return `replicas (${numPhysicalExperts}) must be at least the ${numExperts} experts`;
  }
  if (numPhysicalExperts % numGpus !== 0) {
    return `gpus (${numGpus}) must divide replicas (${numPhysicalExperts})`;
  }
  if (numGpus % numNodes !== 0) return `nodes (${numNodes}) must divide gpus (${numGpus})`;
  if (numExperts % numGroups !== 0)
    return `groups (${numGroups}) must divide ${numExperts} experts`;
  return null;
}

/** Whether groups of experts stay together on nodes. */
export function isHierarchical({ numGroups, numNodes }: PlacementShape): boolean {
  return numGroups % numNodes === 0;
}

/** Places the experts of one layer. */
export function placeExperts(expertLoad: ArrayLike<number>, shape: PlacementShape): Placement {
  const numExperts = expertLoad.length;
  const refusal = refuseShape(shape, numExperts);
  if (refusal !== null) throw new OperationalError("parallel.placement", refusal);
  const load = Array.from(expertLoad);
  assert(
    load.every((value) => Number.isFinite(value) && value >= 0),
    "every expert's load must be a finite number >= 0",
  );
  const { numPhysicalExperts, numGpus } = shape;
  const { numGroups, numNodes } = isHierarchical(shape) ? shape : { numGroups: 1, numNodes: 1 };
  const slotsPerGpu = divExact(numPhysicalExperts, numGpus);
  const replicasPerNode = divExact(numPhysicalExperts, numNodes);
  const nodes = expertsOfNodes(load, numGroups, numNodes);
  const slots = nodes.flatMap((experts) => {
    const replicas = replicate(experts, load, replicasPerNode);
    const counts = countReplicas(replicas);
    const borne = replicas.map(({ expert }) => load[expert]! / counts.get(expert)!);
    const gpus = packEvenly(borne, divExact(numGpus, numNodes));
    return gpus.flatMap((places) => places.map((place) => replicas[place]!));
  });
  assert(slots.length === numGpus * slotsPerGpu, "every slot of every GPU holds an expert");
  return placementOf(slots, numExperts);
}

/** (a) The experts of each node, in the order of its groups. */
function expertsOfNodes(load: readonly number[], numGroups: number, numNodes: number): number[][] {
  const groupSize = divExact(load.length, numGroups);
  const groupLoad = Array.from({ length: numGroups }, (_, group) =>
    load.slice(group * groupSize, (group + 1) * groupSize).reduce((sum, value) => sum + value, 0),
  );
  return packEvenly(groupLoad, numNodes).map((groups) =>
    groups.flatMap((group) =>
      Array.from({ length: groupSize }, (_, index) => group * groupSize + index),
    ),
  );
}

/** (b) One replica of each expert, then one more of whichever bears the most, until there are R. */
function replicate(experts: readonly number[], load: readonly number[], total: number): Replica[] {
  const replicas: Replica[] = experts.map((expert) => ({ expert, rank: 0 }));
  const counts = experts.map(() => 1);
  while (replicas.length < total) {
    let most = 0;
    for (let index = 1; index < experts.length; index++) {
      const borne = load[experts[index]!]! / counts[index]!;
      if (borne > load[experts[most]!]! / counts[most]!) most = index;
    }
    replicas.push({ expert: experts[most]!, rank: counts[most]! });
    counts[most]!++;
  }
  return replicas;
}

/**
 * (a, c) Items into packs of the same number of items: heaviest first, each into the lightest pack
 * that has room. The item numbers of each pack, in the order they were put there.
 */
function packEvenly(weights: readonly number[], numPacks: number): number[][] {
  const room = divExact(weights.length, numPacks);
  if (room === 1) return weights.map((_, item) => [item]);
  const packs = Array.from({ length: numPacks }, (): number[] => []);
  const packed = packs.map(() => 0);
  // `toSorted` is stable: equal weights stay in the order of their numbers.
  const heaviestFirst = weights
    .map((_, item) => item)
    .toSorted((a, b) => weights[b]! - weights[a]!);
  for (const item of heaviestFirst) {
    let lightest = -1;
    for (let pack = 0; pack < numPacks; pack++) {
      if (packs[pack]!.length === room) continue;
      if (lightest < 0 || packed[pack]! < packed[lightest]!) lightest = pack;
    }
    packs[lightest]!.push(item);
    packed[lightest]! += weights[item]!;
  }
  return packs;
}

function countReplicas(replicas: readonly Replica[]): Map<number, number> {
  const counts = new Map<number, number>();
  for (const { expert } of replicas) counts.set(expert, (counts.get(expert) ?? 0) + 1);
  return counts;
}

function placementOf(slots: readonly Replica[], numExperts: number): Placement {
  const logicalToPhysical = Array.from({ length: numExperts }, (): number[] => []);
  for (const [slot, { expert, rank }] of slots.entries()) logicalToPhysical[expert]![rank] = slot;
  return placementFrom(logicalToPhysical);
}

/** The placement that has each expert in these slots, which together are all. */
export function placementFrom(logicalToPhysical: readonly (readonly number[])[]): Placement {
  const replicaCounts = logicalToPhysical.map(({ length }) => length);
  const physicalToLogical: number[] = [];
  for (const [expert, slots] of logicalToPhysical.entries()) {
    for (const slot of slots) physicalToLogical[slot] = expert;
  }
  const numSlots = replicaCounts.reduce((sum, count) => sum + count, 0);
  assert(Object.keys(physicalToLogical).length === numSlots, "every slot holds one expert");
  assert(physicalToLogical.length === numSlots, "slots are numbered from 0 on");
  return { physicalToLogical, logicalToPhysical, replicaCounts };
}

/** The load each GPU bears under a placement, if replicas share evenly. */
export function gpuLoads(
  placement: Placement,
  expertLoad: ArrayLike<number>,
  numGpus: number,
): number[] {
  assert(isIntegerIn(numGpus, 1, placement.physicalToLogical.length), `numGpus (${numGpus})`);
  const slotsPerGpu = divExact(placement.physicalToLogical.length, numGpus);
  return Array.from({ length: numGpus }, (_, gpu) =>
    placement.physicalToLogical
      .slice(gpu * slotsPerGpu, (gpu + 1) * slotsPerGpu)
      .reduce((sum, expert) => sum + expertLoad[expert]! / placement.replicaCounts[expert]!, 0),
  );
}

/** Largest load over the mean: 1 is perfect balance; 1 too where there is no load at all. */
export function imbalance(loads: readonly number[]): number {
  const total = loads.reduce((sum, load) => sum + load, 0);
  return total === 0 ? 1 : (Math.max(...loads) * loads.length) / total;
}

/**
 * The loads with the shared expert as one more routed expert, which every token chooses: how
 * decoding layouts place it beside redundant experts on GPUs of its own.
 */
export function withSharedExpert(expertLoad: ArrayLike<number>, numTokens: number): number[] {
  return [...Array.from(expertLoad), numTokens];
}
