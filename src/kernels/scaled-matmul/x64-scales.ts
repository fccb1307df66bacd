/**
 * @file What the x64 products of scaled operands share: the cut of their depth into pieces, and the
 * scales of the pieces, laid out beside panels.
 *
 *     scales[panel][piece][lane]     f32; a lane is a row of A or a column of B
 */
import { ceilDiv, floorDiv } from "../../base/integers.ts";
import type { Transposition } from "../matmul/block-multiplier.ts";
import type { ScaledPlace } from "./scaled-block.ts";

/** Pieces whose scales there is room for. */
export const PIECES_MAX = 32;

/** Neighbouring rows or columns of the output, in panels of `width`. */
export interface Lanes {
  readonly first: number;
  readonly count: number;
  readonly width: number;
}

/** Neighbouring pieces of depth; the last may end before its depth does. */
export interface Pieces {
  readonly first: number;
  readonly depth: number;
  readonly count: number;
  readonly end: number;
}

/**
 * Pieces of `k` in parts of at most `depthBlock`. A deep piece is cut at its own end too, not only
 * at the ends of blocks; pieces that do not fill units of depth are parts by themselves.
 */
export function cutDepth(options: {
  readonly k: number;
  readonly pieceDepth: number;
  readonly depthBlock: number;
  readonly unit: number;
}): readonly Pieces[] {
  const { k, pieceDepth, depthBlock, unit } = options;
  const depth = Math.min(pieceDepth, depthBlock);
  const most = depth % unit === 0 ? Math.min(PIECES_MAX, floorDiv(depthBlock, depth)) : 1;
  const parts: Pieces[] = [];
  for (let first = 0; first < k; ) {
    const pieceEnd = (floorDiv(first, pieceDepth) + 1) * pieceDepth;
    const end = Math.min(k, pieceDepth > depthBlock ? pieceEnd : k, first + most * depth);
    parts.push({ first, depth, count: ceilDiv(end - first, depth), end });
    first = end;
  }
  return parts;
}

/** Scales that stand evenly: the first's f32 number, steps from lane to lane, piece to piece. */
export interface EvenScales {
  readonly first: number;
  readonly laneStep: number;
  readonly pieceStep: number;
}

/** Where an operand's scales stand, if each lane has its own and pieces stand evenly too. */
function findEvenScales(
  place: ScaledPlace,
  isDepthContiguous: boolean,
  firstLaneOfAll: number,
  pieces: Pieces,
): EvenScales | null {
  const { firstLane, laneTile, laneStep, firstDepth, depthTile, depthStep } = orient(
    place,
    isDepthContiguous,
  );
  const depth = firstDepth + pieces.first;
  const tile = floorDiv(depth, depthTile);
  const isOneTile = floorDiv(depth + (pieces.count - 1) * pieces.depth, depthTile) === tile;
  if (laneTile !== 1 || !(isOneTile || depthTile === pieces.depth)) return null;
  const lane = firstLane + firstLaneOfAll;
  return {
    first: place.scalesOffset / 4 + tile * depthStep + lane * laneStep,
    laneStep,
    pieceStep: isOneTile ? 0 : depthStep,
  };
}

interface OrientedScales {
  readonly firstLane: number;
  readonly laneTile: number;
  readonly laneStep: number;
  readonly firstDepth: number;
  readonly depthTile: number;
  readonly depthStep: number;
}

/** Rows and columns of a place by what they are in the product: lanes and depth. */
function orient(place: ScaledPlace, isDepthContiguous: boolean): OrientedScales {
  const { firstRow, tileRows, scaleRowStride, firstColumn, tileColumns } = place;
  const [rows, columns] = [
    { first: firstRow, tile: tileRows, step: scaleRowStride },
    { first: firstColumn, tile: tileColumns, step: 1 },
  ];
  const [lanes, depth] = isDepthContiguous ? [rows, columns] : [columns, rows];
  return {
    firstLane: lanes.first,
    laneTile: lanes.tile,
    laneStep: lanes.step,
    firstDepth: depth.first,
    depthTile: depth.tile,
    depthStep: depth.step,
  };
}

/** The scales of rows of A: where they stand, or laid out at f32 number `room`. */
export function placeRowScales(
  floats: Float32Array,
  room: number,
  place: ScaledPlace,
  isDepthContiguous: boolean,
  rows: Omit<Lanes, "width">,
  pieces: Pieces,
): EvenScales {
  const even = findEvenScales(place, isDepthContiguous, rows.first, pieces);
  if (even !== null) return even;
  const lanes = { ...rows, width: rows.count };
  fillScales(floats, room, place, isDepthContiguous, lanes, pieces);
  return { first: room, laneStep: 1, pieceStep: rows.count };
}

/** Scales of columns by panels: those of a panel side by side, or one for all of them. */
export interface PanelScales {
  readonly first: number;
  readonly panelStep: number;
  readonly pieceStep: number;
  readonly isShared: boolean;
}

/** The scales of columns of B: where they stand, or laid out at f32 number `room`. */
export function placeColumnScales(
  floats: Float32Array,
  room: number,
  place: ScaledPlace,
  isDepthContiguous: boolean,
  lanes: Lanes,
  pieces: Pieces,
): PanelScales {
  const { width } = lanes;
  const even = findEvenScales(place, isDepthContiguous, lanes.first, pieces);
  if (even?.laneStep === 1) {
    const { first, pieceStep } = even;
    return { first, panelStep: width, pieceStep, isShared: false };
  }
  const isShared = fillSharedScales(floats, room, place, isDepthContiguous, lanes, pieces);
  if (!isShared) fillScales(floats, room, place, isDepthContiguous, lanes, pieces);
  const pieceStep = isShared ? 1 : width;
  return { first: room, panelStep: pieces.count * pieceStep, pieceStep, isShared };
}

/**
 * Writes one scale a panel and piece, from f32 number `to` on, if the lanes of every panel share
 * theirs; returns whether they do.
 */
function fillSharedScales(
  floats: Float32Array,
  to: number,
  place: ScaledPlace,
  isDepthContiguous: boolean,
  lanes: Lanes,
  pieces: Pieces,
): boolean {
  const { firstLane, laneTile, laneStep, firstDepth, depthTile, depthStep } = orient(
    place,
    isDepthContiguous,
  );
  const first = firstLane + lanes.first;
  const isAligned = first % lanes.width === 0 && laneTile % lanes.width === 0;
  if (!isAligned && first + lanes.count > laneTile) return false;
  let at = to;
  for (let start = 0; start < lanes.count; start += lanes.width) {
    const lane = place.scalesOffset / 4 + floorDiv(first + start, laneTile) * laneStep;
    for (let piece = 0; piece < pieces.count; piece++) {
      const depth = firstDepth + pieces.first + piece * pieces.depth;
      floats[at++] = floats[lane + floorDiv(depth, depthTile) * depthStep]!;
    }
  }
  return true;
}

/** Writes an operand's scales into its panels, from f32 number `to` on. */
export function fillScales(
  floats: Float32Array,
  to: number,
  place: ScaledPlace,
  isDepthContiguous: boolean,
  lanes: Lanes,
  pieces: Pieces,
): void {
  const { firstLane, laneTile, laneStep, firstDepth, depthTile, depthStep } = orient(
    place,
    isDepthContiguous,
  );
  const from = place.scalesOffset / 4;
  const { width } = lanes;
  for (let piece = 0; piece < pieces.count; piece++) {
    const depth = firstDepth + pieces.first + piece * pieces.depth;
    const ofPiece = from + floorDiv(depth, depthTile) * depthStep;
    let at = to + piece * width;
    for (let start = 0; start < lanes.count; start += width, at += pieces.count * width) {
      const lane = firstLane + lanes.first + start;
      const count = Math.min(width, lanes.count - start);
      if (laneTile === 1) copyLanes(floats, at, ofPiece + lane * laneStep, laneStep, count);
      else fillLanes(floats, at, ofPiece, lane, laneTile, laneStep, count);
    }
  }
}

/** Lanes with scales of their own. */
function copyLanes(
  floats: Float32Array,
  to: number,
  from: number,
  step: number,
  count: number,
): void {
  for (let lane = 0; lane < count; lane++) floats[to + lane] = floats[from + lane * step]!;
}

/** Lanes that share tiles, as a rule all of them one; `ofPiece` has the scale of lane 0. */
function fillLanes(
  floats: Float32Array,
  to: number,
  ofPiece: number,
  lane: number,
  laneTile: number,
  laneStep: number,
  count: number,
): void {
  let tile = floorDiv(lane, laneTile);
  for (let at = 0; at < count; tile++) {
    const scale = floats[ofPiece + tile * laneStep]!;
    const end = Math.min(count, (tile + 1) * laneTile - lane);
    for (; at < end; at++) floats[to + at] = scale;
  }
}

/** Whether the depth of operand a or b stands along its rows. */
export function isDepthAlongRows(operand: "a" | "b", transposition: Transposition): boolean {
  return operand === "a" ? transposition !== "tn" : transposition === "nt";
}
