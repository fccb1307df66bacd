/**
 * @file The ranks as a box with three axes, and a communicator along each.
 *
 *   pp   stages of one pipeline
 *   ep   ranks that share the experts of a stage; each has its own tokens
 *   dp   copies of all that, each with its own tokens
 *
 *     rank = (dp·PP + pp)·EP + ep
 *
 * Neighbours along `ep` exchange most and so have neighbouring ranks. Parameters outside of experts
 * have a copy on every rank of a stage, along `ep` and `dp` together: `replicas`. An expert's
 * copies are along `dp` alone. There is no axis for tensors, as in the DeepSeek-V3 report.
 */
import { assert, OperationalError } from "../base/errors.ts";
import { floorDiv, isIntegerIn } from "../base/integers.ts";
import type { Communicator } from "./communicator/communicator.ts";

export const MESH_AXES = ["pp", "ep", "dp"] as const;
export type MeshAxis = (typeof MESH_AXES)[number];

/** Of one axis. */
const RANKS_MAX = 4096;

/** The length of each axis. */
export type MeshShape = Readonly<Record<MeshAxis, number>>;
/** A place on each axis, from 0. */
export type MeshPlace = Readonly<Record<MeshAxis, number>>;

export interface Mesh extends Readonly<Record<MeshAxis, Communicator>> {
  readonly world: Communicator;
  readonly shape: MeshShape;
  readonly place: MeshPlace;
  /** All ranks of this rank's stage, `dp` before `ep`. */
  readonly replicas: Communicator;
}

/** The axes of "pp=2,ep=2,dp=2"; one that is not named has one rank. */
export function parseLayout(text: string): MeshShape {
  const shape: Partial<Record<MeshAxis, number>> = {};
  for (const part of text.split(",")) {
    const [, name, digits] = /^\s*([a-z]+)=(\d+)\s*$/.exec(part) ?? [];
    const axis = MESH_AXES.find((known) => known === name);
    const length = Number(digits);
    if (axis === undefined || shape[axis] !== undefined || !isIntegerIn(length, 1, RANKS_MAX)) {
      throw new OperationalError(
        "usage.layout",
        `layout ${text}: "${part}" is not an axis with its ranks; the axes are pp, ep and dp, ` +
          `each at most once, with 1 to ${RANKS_MAX} ranks, such as pp=2,ep=2,dp=2`,
      );
    }
    shape[axis] = length;
  }
  return { pp: 1, ep: 1, dp: 1, ...shape };
}

/** As `parseLayout` reads it, without axes of one rank. */
export function formatLayout(shape: MeshShape): string {
  const axes = MESH_AXES.filter((axis) => shape[axis] > 1);
  return (axes.length === 0 ? MESH_AXES : axes).map((axis) => `${axis}=${shape[axis]}`).join(",");
}

export function numRanksOf({ pp, ep, dp }: MeshShape): number {
  return pp * ep * dp;
}

/** The shape over all ranks, `dp` being what the others leave; refuses what does not divide. */
export function meshShape(numRanks: number, { pp, ep }: Omit<MeshShape, "dp">): MeshShape {
  if (numRanks % (pp * ep) !== 0) {
    throw new OperationalError(
      "parallel.mesh",
      `${numRanks} ranks do not divide into pipelines of ${pp} stages times ${ep} expert ranks; ` +
        `use a multiple of ${pp * ep}`,
    );
  }
  return { pp, ep, dp: numRanks / (pp * ep) };
}

export function placeOf({ pp, ep }: MeshShape, rank: number): MeshPlace {
  return { ep: rank % ep, pp: floorDiv(rank, ep) % pp, dp: floorDiv(rank, ep * pp) };
}

export function rankAt(shape: MeshShape, { pp, ep, dp }: MeshPlace): number {
  for (const axis of MESH_AXES) {
    const index = { pp, ep, dp }[axis];
    assert(isIntegerIn(index, 0, shape[axis] - 1), `${axis} (${index}) of ${shape[axis]}`);
  }
  return (dp * shape.pp + pp) * shape.ep + ep;
}

/** Collective over `world`. */
export function openMesh(world: Communicator, shape: MeshShape): Mesh {
  assert(numRanksOf(shape) === world.size, `${formatLayout(shape)} is not ${world.size} ranks`);
  const place = placeOf(shape, world.rank);
  const along = (axis: MeshAxis): Communicator =>
    member(world.split(rankAt(shape, { ...place, [axis]: 0 }), place[axis], axis));
  return {
    world,
    shape,
    place,
    pp: along("pp"),
    ep: along("ep"),
    dp: along("dp"),
    replicas: member(world.split(place.pp, world.rank, "replicas")),
  };
}

function member(communicator: Communicator | null): Communicator {
  assert(communicator !== null, "every rank is on every axis");
  return communicator;
}
