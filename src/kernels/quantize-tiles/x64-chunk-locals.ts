/** @file What functions over chunks keep in their frame: pointers, and slots as integers. */
import type { X64 } from "../../codegen/x64/assembler.ts";
import { loadSlot } from "../../codegen/x64/kernel-function.ts";
import { type Gp, type Memory, r } from "../../codegen/x64/operands.ts";
import { TILES_AT, type TileSlot } from "./x64-tiles.ts";

/** Slots that loops read, as integers: converting one takes the port that codes are bound by. */
type IntegerSlot = Extract<
  TileSlot,
  | ("columns" | "bands" | "bandRows" | "bandsPerBlock" | "tileColumns" | "xTileColumns")
  | ("xRowBytes" | "outRowBytes" | "xScaleRowBytes" | "scaleRowBytes" | "amaxMinBits")
>;
const INTEGERS: readonly IntegerSlot[] = [
  ...(["columns", "bands", "bandRows", "bandsPerBlock", "tileColumns", "xTileColumns"] as const),
  ...(["xRowBytes", "outRowBytes", "xScaleRowBytes", "scaleRowBytes", "amaxMinBits"] as const),
];

type Pointer = `${"block" | "band"}${"X" | "XScales" | "Out" | "Scales"}`;
type Local =
  | Pointer
  | ("bandsLeft" | "blockBands" | "toGo" | "columnsLeft")
  | ("rowScales" | "tileXScales" | "xTileLeft")
  | IntegerSlot;

const LOCALS: readonly Local[] = [
  ...(["blockX", "blockXScales", "blockOut", "blockScales"] as const),
  ...(["bandX", "bandXScales", "bandOut", "bandScales"] as const),
  ...(["bandsLeft", "blockBands", "toGo", "columnsLeft"] as const),
  ...(["rowScales", "tileXScales", "xTileLeft"] as const),
  ...INTEGERS,
];
export const NUM_LOCALS: number = LOCALS.length;
export type Locals = (name: Local) => Memory;

/** The locals of a function, whose integers are read. */
export function emitLocals(a: X64, localAt: (index: number) => Memory): Locals {
  const local: Locals = (name) => localAt(LOCALS.indexOf(name));
  for (const name of INTEGERS) {
    loadSlot(a, r.rax, TILES_AT[name]);
    a.mov(local(name), r.rax);
  }
  return local;
}

/** destination += addend, by way of rax. */
export function add(a: X64, destination: Gp | Memory, addend: Memory): void {
  a.mov(r.rax, addend);
  a.add(destination, r.rax);
}

/** to = from, by way of rax. */
export function move(a: X64, to: Memory, from: Memory): void {
  a.mov(r.rax, from);
  a.mov(to, r.rax);
}
