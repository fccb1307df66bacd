/**
 * @file From one placement to the next with as few copies as possible.
 *
 * A placement says which experts share a GPU and which GPUs share a node; their numbers are only
 * names. So before anything moves, the new placement's nodes, its GPUs within each node and its
 * slots within each GPU are renamed to what resembles the old one most (two assignment problems,
 * one inside the other). What then differs is copied: from the same GPU where a copy is there
 * already, else from the same node, else from the GPU that has sent least.
 *
 * Not here: the copying. Slots are read and written at once, so whoever applies a plan copies into
 * spare memory, or keeps a slot until its readers are done.
 */
import { assert, defined } from "../../../base/errors.ts";
import { divExact, floorDiv } from "../../../base/integers.ts";
import { assignCheapest } from "./assignment.ts";
import type { Placement, PlacementShape } from "./place-experts.ts";

/** Slot `to` takes a copy of what slot `from` held before. */
export interface ExpertMove {
  readonly expert: number;
  readonly from: number;
  readonly to: number;
}

export interface MovePlan {
  /** The new placement, renamed. */
  readonly placement: Placement;
  readonly moves: readonly ExpertMove[];
}

type Topology = Pick<PlacementShape, "numNodes" | "numGpus">;

/** Both placements are of one layer and one shape. */
export function planMoves(previous: Placement, next: Placement, topology: Topology): MovePlan {
  const { numNodes, numGpus } = topology;
  const numSlots = previous.physicalToLogical.length;
  assert(next.physicalToLogical.length === numSlots, "both placements have the same slots");
  const before = chunk(previous.physicalToLogical, divExact(numSlots, numGpus));
  const after = chunk(next.physicalToLogical, divExact(numSlots, numGpus));
  const gpuOrder = renameGpus(before, after, divExact(numGpus, numNodes));
  const slots = gpuOrder.flatMap((gpu, place) => keepPlaces(before[place]!, after[gpu]!));
  return {
    placement: renamed(next, slots),
    moves: movesBetween(previous, slots, topology),
  };
}

/** For each old GPU the new GPU that takes its name. */
function renameGpus(
  before: readonly (readonly number[])[],
  after: readonly (readonly number[])[],
  gpusPerNode: number,
): number[] {
  const oldNodes = chunk(before, gpusPerNode);
  const newNodes = chunk(after, gpusPerNode);
  const matches = oldNodes.map((oldNode) => newNodes.map((newNode) => matchGpus(oldNode, newNode)));
  const nodeOf = assignCheapest(matches.map((row) => row.map(({ numMissing }) => numMissing)));
  return nodeOf.flatMap((node, place) =>
    matches[place]![node]!.gpuOf.map((gpu) => node * gpusPerNode + gpu),
  );
}

function matchGpus(
  oldGpus: readonly (readonly number[])[],
  newGpus: readonly (readonly number[])[],
): { readonly gpuOf: number[]; readonly numMissing: number } {
  const missing = oldGpus.map((had) => newGpus.map((wants) => countMissing(had, wants)));
  const gpuOf = assignCheapest(missing);
  const numMissing = gpuOf.reduce((sum, gpu, place) => sum + missing[place]![gpu]!, 0);
  return { gpuOf, numMissing };
}

/** Experts that a GPU wants and has no copy of. */
function countMissing(had: readonly number[], wants: readonly number[]): number {
  const held = new Set(had);
  return new Set(wants.filter((expert) => !held.has(expert))).size;
}

/** The experts a GPU wants, those it has in the slots where they are. */
function keepPlaces(had: readonly number[], wants: readonly number[]): number[] {
  const left = [...wants];
  const kept = had.map((expert) => {
    const place = left.indexOf(expert);
    if (place < 0) return undefined;
    left.splice(place, 1);
    return expert;
  });
  return kept.map((expert) => expert ?? defined(left.shift(), "an expert for a free slot"));
}

/** The same placement in renamed slots; replicas keep the order of their slots. */
function renamed({ replicaCounts }: Placement, slots: readonly number[]): Placement {
  const logicalToPhysical = replicaCounts.map((): number[] => []);
  for (const [slot, expert] of slots.entries()) logicalToPhysical[expert]!.push(slot);
  return { physicalToLogical: slots, logicalToPhysical, replicaCounts };
}

/** To experts in other slots, as they are named. */
export function movesBetween(
  previous: Placement,
  slots: readonly number[],
  { numNodes, numGpus }: Topology,
): ExpertMove[] {
  const gpuOf = (slot: number): number => floorDiv(slot, divExact(slots.length, numGpus));
  const nodeOf = (slot: number): number => floorDiv(slot, divExact(slots.length, numNodes));
  const numSent = new Array<number>(numGpus).fill(0);
  return slots.flatMap((expert, to) => {
    if (previous.physicalToLogical[to] === expert) return [];
    const distance = (from: number): number =>
      gpuOf(from) === gpuOf(to) ? 0 : nodeOf(from) === nodeOf(to) ? 1 : 2;
    const [from] = previous.logicalToPhysical[expert]!.toSorted(
      (a, b) => distance(a) - distance(b) || numSent[gpuOf(a)]! - numSent[gpuOf(b)]! || a - b,
    );
    assert(from !== undefined, `expert ${expert} was nowhere before`);
    if (gpuOf(from) !== gpuOf(to)) numSent[gpuOf(from)]!++;
    return [{ expert, from, to }];
  });
}

function chunk<T>(items: readonly T[], each: number): T[][] {
  return Array.from({ length: divExact(items.length, each) }, (_, index) =>
    items.slice(index * each, (index + 1) * each),
  );
}
