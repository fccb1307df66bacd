/**
 * @file The native functions of quantisation by tiles: bands of one height, tile after tile.
 *
 *     quantise     amax of a tile, its scale, its codes: two passes, the second from the cache
 *     dequantise   one pass
 *
 * Tiles lie along the rows (1×128, 128×128, a row, the whole band) and have one scale each, or are
 * one column wide (128×1): then sixteen neighbours go together, a scale in each lane. A scaled
 * source has one scale a row, that is, tiles of one row and a launch within one column of them.
 *
 * Slots are addresses, bytes and counts. Nothing outside the operands is touched.
 */
import type { X64 } from "../../codegen/x64/assembler.ts";
import { emitKernel, loadSlot } from "../../codegen/x64/kernel-function.ts";
import {
  type Gp,
  type Memory,
  mem,
  merging,
  r,
  xmm,
  zeroing,
  zmm,
} from "../../codegen/x64/operands.ts";
import { slotIndex } from "../kernel.ts";
import { emitEither } from "../matmul/x64-vector-core.ts";
import { FORMATS } from "./reference.ts";
import {
  emitCodeConstants,
  emitLanes,
  emitRead,
  emitSplat,
  emitWrite,
  LANE_MASK,
  LANES,
  type StoredDType,
} from "./x64-codes.ts";

const SLOTS = [
  "x",
  "xRowBytes",
  "xScales",
  "xScaleRowBytes",
  "out",
  "outRowBytes",
  "scales",
  "scaleRowBytes",
  "bands",
  "bandRows",
  "columns",
  "tileColumns",
  "amaxMinBits",
  "powerOfTwo",
  "constants",
] as const;
type TileSlot = (typeof SLOTS)[number];
/** Position of each argument of a function of tiles. */
export const TILES_AT: Record<TileSlot, number> = slotIndex(SLOTS);

/** Whether tiles have one scale each along a row, or are one column wide. */
export type TileDirection = "along" | "across";

export interface TileFunction {
  readonly source: StoredDType;
  readonly target: StoredDType;
  readonly direction: TileDirection;
}

const AT = {
  x: r.r8,
  out: r.r9,
  scales: r.r10,
  columnsLeft: r.r11,
  width: r.r12,
  rowX: r.r13,
  rowOut: r.r14,
  rowsLeft: r.r15,
  left: r.rbx,
  atX: r.rbp,
  atOut: r.rsi,
  constants: r.rcx,
} as const;

const [scale, value, rowScale] = [zmm(0), zmm(1), zmm(6)];
const [amaxMin, largest, belowPower, exponent] = [zmm(10), zmm(11), zmm(12), zmm(13)];

const LOCALS = ["x", "xScales", "out", "scales", "bandsLeft", "rowScales"] as const;
type Locals = (name: (typeof LOCALS)[number]) => Memory;

/** Whether elements are codes with scales. */
function isScaled(dtype: StoredDType): boolean {
  return dtype !== "f32" && dtype !== "bf16";
}

/** register += elements, in bytes; clobbers rax. Counts are even wherever a halved byte matters. */
function emitAdvance(a: X64, register: Gp, dtype: StoredDType, elements: Gp): void {
  const halfBytes = { f32: 8, bf16: 4, e4m3: 2, e5m2: 2, e5m6: 3 }[dtype];
  a.imul(r.rax, elements, halfBytes);
  a.shr(r.rax, 1);
  a.add(register, r.rax);
}

function addSlot(a: X64, destination: Gp | Memory, name: TileSlot): void {
  loadSlot(a, r.rax, TILES_AT[name]);
  a.add(destination, r.rax);
}

/**
 * All elements of a tile, row by row, sixteen at a time; `emit` finds their values in zmm1, codes
 * times the scale of their row if `hasRowScales`.
 */
function emitEachVector(
  a: X64,
  { source, target, hasRowScales }: TileFunction & { readonly hasRowScales: boolean },
  local: Locals,
  emit: () => void,
): void {
  a.mov(AT.rowX, AT.x);
  a.mov(AT.rowOut, AT.out);
  a.mov(r.rax, local("xScales"));
  a.mov(local("rowScales"), r.rax);
  loadSlot(a, AT.rowsLeft, TILES_AT.bandRows);
  a.countdown(AT.rowsLeft, 1, () => {
    if (hasRowScales) {
      a.mov(r.rax, local("rowScales"));
      a.v("vbroadcastss", [rowScale, mem(r.rax)]);
      addSlot(a, local("rowScales"), "xScaleRowBytes");
    }
    a.mov(AT.atX, AT.rowX);
    a.mov(AT.atOut, AT.rowOut);
    a.mov(AT.left, AT.width);
    a.countdown(AT.left, LANES, () => {
      const isPacked = source === "e5m6" || target === "e5m6";
      emitLanes(a, { left: AT.left, constants: AT.constants, isPacked });
      emitRead(a, { source, to: value, from: AT.atX, constants: AT.constants });
      if (hasRowScales) a.v("vmulps", [value, value, rowScale]);
      emit();
      a.add(AT.atX, LANES * { f32: 4, bf16: 2, e4m3: 1, e5m2: 1, e5m6: 1.5 }[source]);
      a.add(AT.atOut, LANES * { f32: 4, bf16: 2, e4m3: 1, e5m2: 1, e5m6: 1.5 }[target]);
    });
    addSlot(a, AT.rowX, "xRowBytes");
    addSlot(a, AT.rowOut, "outRowBytes");
  });
}

/** Walk the tiles of all bands. */
function emitEachTile(a: X64, of: TileFunction, local: Locals, emit: () => void): void {
  for (const name of ["x", "xScales", "out", "scales"] as const) {
    loadSlot(a, r.rax, TILES_AT[name]);
    a.mov(local(name), r.rax);
  }
  loadSlot(a, r.rax, TILES_AT.bands);
  a.mov(local("bandsLeft"), r.rax);
  const [nextBand, nextTile] = [a.label(), a.label()];
  a.bind(nextBand);
  for (const name of ["x", "out", "scales"] as const) a.mov(AT[name], local(name));
  loadSlot(a, AT.columnsLeft, TILES_AT.columns);
  a.bind(nextTile);
  if (of.direction === "across") a.mov(AT.width, LANES);
  else loadSlot(a, AT.width, TILES_AT.tileColumns);
  a.cmp(AT.columnsLeft, AT.width);
  a.cmov("l", AT.width, AT.columnsLeft);
  emit();
  emitAdvance(a, AT.x, of.source, AT.width);
  emitAdvance(a, AT.out, of.target, AT.width);
  a.add(AT.scales, of.direction === "across" ? 4 * LANES : 4);
  a.sub(AT.columnsLeft, AT.width);
  a.j("g", nextTile);
  emitNextBand(a, local);
  a.cmp(local("bandsLeft"), 0);
  a.j("g", nextBand);
}

function emitNextBand(a: X64, local: Locals): void {
  const bandRows = r.rdx;
  loadSlot(a, bandRows, TILES_AT.bandRows);
  for (const [name, stride] of [
    ["x", "xRowBytes"],
    ["out", "outRowBytes"],
    ["xScales", "xScaleRowBytes"],
  ] as const) {
    loadSlot(a, r.rax, TILES_AT[stride]);
    a.imul(r.rax, bandRows);
    a.add(local(name), r.rax);
  }
  addSlot(a, local("scales"), "scaleRowBytes");
  a.sub(local("bandsLeft"), 1);
}

/** Every lane = the largest lane. */
function emitLargestLane(a: X64): void {
  const other = value;
  for (const quarters of [0x4e, 0xb1]) {
    a.v("vshuff32x4", [other, scale, scale, quarters]);
    a.v("vmaxps", [scale, scale, other]);
  }
  for (const within of [0x4e, 0xb1]) {
    a.v("vpermilps", [other, scale, within]);
    a.v("vmaxps", [scale, scale, other]);
  }
}

/** From the largest magnitudes to scales, which are stored. */
function emitScales(a: X64, { direction }: TileFunction, powerOfTwo: Memory): void {
  if (direction === "along") emitLargestLane(a);
  a.v("vmaxps", [scale, scale, amaxMin]);
  a.v("vdivps", [scale, scale, largest]);
  emitEither(a, powerOfTwo, (isSet) => {
    if (!isSet) return;
    a.v("vpaddd", [scale, scale, belowPower]);
    a.v("vpandd", [scale, scale, exponent]);
  });
  if (direction === "along") {
    a.v("vmovss m32", [mem(AT.scales), xmm(0)]);
    return;
  }
  emitLanes(a, { left: AT.width, constants: AT.constants, isPacked: false });
  a.v("vmovups", [mem(AT.scales), scale], merging(LANE_MASK));
}

/** Code that quantises: `source` may be scaled itself. */
export function emitQuantise(of: TileFunction): Uint8Array {
  return emitKernel({
    numLocals: LOCALS.length,
    body: (a, localAt) => {
      const local: Locals = (name) => localAt(LOCALS.indexOf(name));
      const { source, target } = of;
      loadSlot(a, AT.constants, TILES_AT.constants);
      emitCodeConstants(a, { source, target, constants: AT.constants });
      loadSlot(a, r.rax, TILES_AT.amaxMinBits);
      a.v("vpbroadcastd r32", [amaxMin, r.rax]);
      emitSplat(a, largest, floatBits(FORMATS[target as "e4m3"].largest));
      emitSplat(a, belowPower, 0x7fffff);
      emitSplat(a, exponent, 0x7f800000);
      const magnitude = zmm(16);
      emitEachTile(a, of, local, () => {
        a.v("vpxord", [scale, scale, scale]);
        const work = { ...of, hasRowScales: isScaled(source) };
        emitEachVector(a, work, local, () => {
          a.v("vpandd", [value, value, magnitude]);
          // The second operand is the answer to NaN: it counts as nothing.
          a.v("vmaxps", [scale, value, scale]);
        });
        emitScales(a, of, mem(r.rdi, 8 * TILES_AT.powerOfTwo));
        emitEachVector(a, work, local, () => {
          a.v("vdivps", [value, value, scale]);
          emitWrite(a, { target, x: value, to: AT.atOut });
        });
      });
    },
  });
}

/** Code that dequantises. The tiles' scales are the source's: one band has one row of them. */
export function emitDequantise(of: TileFunction): Uint8Array {
  return emitKernel({
    numLocals: LOCALS.length,
    body: (a, localAt) => {
      const local: Locals = (name) => localAt(LOCALS.indexOf(name));
      const { source, target, direction } = of;
      loadSlot(a, AT.constants, TILES_AT.constants);
      emitCodeConstants(a, { source, target, constants: AT.constants });
      emitEachTile(a, of, local, () => {
        a.mov(local("xScales"), AT.scales);
        if (direction === "across") {
          emitLanes(a, { left: AT.width, constants: AT.constants, isPacked: false });
          a.v("vmovups", [scale, mem(AT.scales)], zeroing(LANE_MASK));
        }
        emitEachVector(a, { ...of, hasRowScales: direction === "along" }, local, () => {
          if (direction === "across") a.v("vmulps", [value, value, scale]);
          emitWrite(a, { target, x: value, to: AT.atOut });
        });
      });
    },
  });
}

const float = new Float32Array(1);
const bits = new Uint32Array(float.buffer);
function floatBits(value: number): number {
  float[0] = value;
  return bits[0]!;
}
