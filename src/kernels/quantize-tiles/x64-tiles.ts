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
  k,
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
  emitAllLanes,
  emitCodeConstants,
  emitLanes,
  emitRead,
  emitSplat,
  emitWrite,
  floatBits,
  LANE_MASK,
  LANES,
  type StoredDType,
  storedBytes,
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
  /** The others are of functions of chunks (x64-chunk-tiles.ts). */
  "chunkConstants",
  "bandsPerBlock",
  /** Columns of the source's tiles, whole chunks. */
  "xTileColumns",
  /** Written: not 0 if something was not ordinary. */
  "refused",
] as const;
export type TileSlot = (typeof SLOTS)[number];
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

/** Vectors that go side by side: each has an accumulator, or a scale, of its own. */
const COPIES = 4;
const scales = [zmm(0), zmm(7), zmm(8), zmm(9)] as const;
const reciprocals = [zmm(10), zmm(11), zmm(12), zmm(13)] as const;
const [scale] = scales;
const [value, rowScale, quotient, rest] = [zmm(1), zmm(6), zmm(14), zmm(15)];

const LOCALS = ["x", "xScales", "out", "scales", "bandsLeft", "rowScales", "unordinary"] as const;
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

/** Where one vector of a tile stands, and which of the neighbouring ones it is. */
interface VectorPlace {
  readonly copy: number;
  readonly out: Memory;
}

/**
 * All elements of a tile, row by row, sixteen at a time, four vectors at a time while there are as
 * many; `emit` finds their values in zmm1, codes times the scale of their row if `hasRowScales`.
 */
function emitEachVector(
  a: X64,
  { source, target, hasRowScales }: TileFunction & { readonly hasRowScales: boolean },
  local: Locals,
  emit: (place: VectorPlace) => void,
): void {
  const isPacked = source === "e5m6" || target === "e5m6";
  const [xBytes, outBytes] = [storedBytes(source, LANES), storedBytes(target, LANES)];
  const emitVector = (copy: number): void => {
    const from = mem(AT.atX, copy * xBytes);
    emitRead(a, { source, to: value, from, constants: AT.constants });
    if (hasRowScales) a.v("vmulps", [value, value, rowScale]);
    emit({ copy, out: mem(AT.atOut, copy * outBytes) });
  };
  const advance = (vectors: number): void => {
    a.add(AT.atX, vectors * xBytes);
    a.add(AT.atOut, vectors * outBytes);
  };
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
    emitAllLanes(a, isPacked);
    a.lea(AT.left, mem(AT.width, 1 - COPIES * LANES));
    a.countdown(AT.left, COPIES * LANES, () => {
      for (let copy = 0; copy < COPIES; copy++) emitVector(copy);
      advance(COPIES);
    });
    a.add(AT.left, COPIES * LANES - 1);
    a.countdown(AT.left, LANES, () => {
      emitLanes(a, { left: AT.left, constants: AT.constants, isPacked });
      emitVector(0);
      advance(1);
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
  if (of.direction === "across") emitAcrossWidth(a);
  else loadSlot(a, AT.width, TILES_AT.tileColumns);
  a.cmp(AT.columnsLeft, AT.width);
  a.cmov("l", AT.width, AT.columnsLeft);
  emit();
  emitAdvance(a, AT.x, of.source, AT.width);
  emitAdvance(a, AT.out, of.target, AT.width);
  if (of.direction === "across") a.lea(AT.scales, mem(AT.scales, 0, AT.width, 4));
  else a.add(AT.scales, 4);
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

/** width = 64 columns while there are as many, then 16. */
function emitAcrossWidth(a: X64): void {
  a.mov(AT.width, LANES);
  a.mov(r.rax, COPIES * LANES);
  a.cmp(AT.columnsLeft, r.rax);
  a.cmov("ge", AT.width, r.rax);
}

/** Every lane of the first accumulator = the largest lane of all. */
function emitLargestLane(a: X64): void {
  const other = value;
  a.v("vmaxps", [scales[0], scales[0], scales[1]]);
  a.v("vmaxps", [scales[2], scales[2], scales[3]]);
  a.v("vmaxps", [scale, scales[0], scales[2]]);
  for (const quarters of [0x4e, 0xb1]) {
    a.v("vshuff32x4", [other, scale, scale, quarters]);
    a.v("vmaxps", [scale, scale, other]);
  }
  for (const within of [0x4e, 0xb1]) {
    a.v("vpermilps", [other, scale, within]);
    a.v("vmaxps", [scale, scale, other]);
  }
}

/** Scales between these powers of two have reciprocals that `emitQuotient` can trust. */
export const LEAST_POWER = -60;
export const LARGEST_POWER = 60;

/** From the largest magnitudes to scales, which are stored. */
function emitScales(a: X64, { direction, target }: TileFunction): void {
  const used = direction === "along" ? [scale] : scales;
  const [amaxMin, largest, belowPower, exponent] = [zmm(2), zmm(3), zmm(4), zmm(5)];
  if (direction === "along") emitLargestLane(a);
  loadSlot(a, r.rax, TILES_AT.amaxMinBits);
  a.v("vpbroadcastd r32", [amaxMin, r.rax]);
  emitSplat(a, largest, floatBits(FORMATS[target as "e4m3"].largest));
  emitSplat(a, belowPower, 0x7fffff);
  emitSplat(a, exponent, 0x7f800000);
  for (const each of used) {
    a.v("vmaxps", [each, each, amaxMin]);
    a.v("vdivps", [each, each, largest]);
  }
  emitEither(a, mem(r.rdi, 8 * TILES_AT.powerOfTwo), (isSet) => {
    if (!isSet) return;
    for (const each of used) {
      a.v("vpaddd", [each, each, belowPower]);
      a.v("vpandd", [each, each, exponent]);
    }
  });
  if (direction === "along") {
    a.v("vmovss m32", [mem(AT.scales), xmm(0)]);
    return;
  }
  const [narrow, stored] = [a.label(), a.label()];
  a.cmp(AT.width, COPIES * LANES);
  a.j("ne", narrow);
  for (const [copy, each] of scales.entries()) a.v("vmovups", [mem(AT.scales, 64 * copy), each]);
  a.jmp(stored);
  a.bind(narrow);
  emitLanes(a, { left: AT.width, constants: AT.constants, isPacked: false });
  a.v("vmovups", [mem(AT.scales), scale], merging(LANE_MASK));
  a.bind(stored);
}

/**
 * Reciprocals of scales, and whether all are ordinary: where one is not, codes are made by
 * division.
 */
function emitReciprocals(a: X64, count: number, local: Locals): void {
  const [one, least, above, most] = [zmm(2), zmm(3), zmm(4), zmm(5)];
  const isBeyond = k(3);
  emitSplat(a, one, floatBits(1));
  emitSplat(a, least, floatBits(2 ** LEAST_POWER));
  for (let copy = 0; copy < count; copy++) {
    a.v("vdivps", [reciprocals[copy]!, one, scales[copy]!]);
    a.v("vpsubd", [copy === 0 ? most : above, scales[copy]!, least]);
    if (copy > 0) a.v("vpmaxud", [most, most, above]);
  }
  emitSplat(a, least, floatBits(2 ** LARGEST_POWER) - floatBits(2 ** LEAST_POWER));
  a.v("vpcmpud", [isBeyond, most, least, 6]);
  a.kmovdToGp(r.rax, isBeyond);
  a.mov(local("unordinary"), r.rax);
}

/**
 * quotient = value ÷ scale, correctly rounded, by two corrections of value · reciprocal: a division
 * takes 16 cycles on some processors, these three. A zero may lose its sign.
 */
function emitQuotient(a: X64, copy: number): void {
  const [divisor, reciprocal] = [scales[copy]!, reciprocals[copy]!];
  a.v("vmulps", [quotient, value, reciprocal]);
  for (let correction = 0; correction < 2; correction++) {
    a.v("vmovaps", [rest, value]);
    a.v("vfnmadd231ps", [rest, quotient, divisor]);
    a.v("vfmadd231ps", [quotient, rest, reciprocal]);
  }
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
      const work = { ...of, hasRowScales: isScaled(source) };
      const emitFindScales = (): void => emitLargest(a, of, work, local);
      const emitCodes = (): void => {
        emitReciprocals(a, of.direction === "along" ? 1 : COPIES, local);
        emitEither(a, local("unordinary"), (isUnordinary) =>
          emitEachVector(a, work, local, ({ copy, out }) => {
            const divisor = of.direction === "along" ? 0 : copy;
            if (isUnordinary) a.v("vdivps", [quotient, value, scales[divisor]!]);
            else emitQuotient(a, divisor);
            emitWrite(a, { target, x: quotient, signs: value, to: out });
          }),
        );
      };
      if (of.direction === "across") {
        emitEachTile(a, of, local, () => {
          emitFindScales();
          emitCodes();
        });
        return;
      }
      // A tile is a few vectors: none waits for its scale if all are found first.
      emitEachTile(a, of, local, emitFindScales);
      emitEachTile(a, of, local, () => {
        a.v("vbroadcastss", [scale, mem(AT.scales)]);
        emitCodes();
      });
    },
  });
}

/** Scales from the largest magnitudes of a tile, or of the tiles of neighbouring columns. */
function emitLargest(
  a: X64,
  of: TileFunction,
  work: Parameters<typeof emitEachVector>[1],
  local: Locals,
): void {
  const magnitude = zmm(16);
  for (const each of scales) a.v("vpxord", [each, each, each]);
  emitEachVector(a, work, local, ({ copy }) => {
    const most = scales[copy]!;
    a.v("vpandd", [value, value, magnitude]);
    // The second operand is the answer to NaN: it counts as nothing.
    a.v("vmaxps", [most, value, most]);
  });
  emitScales(a, of);
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
        if (direction === "across") emitLoadScales(a);
        emitEachVector(a, { ...of, hasRowScales: direction === "along" }, local, (place) => {
          if (direction === "across") a.v("vmulps", [value, value, scales[place.copy]!]);
          emitWrite(a, { target, x: value, to: place.out });
        });
      });
    },
  });
}

/** The scales of 16 or 64 columns. */
function emitLoadScales(a: X64): void {
  const [narrow, loaded] = [a.label(), a.label()];
  a.cmp(AT.width, COPIES * LANES);
  a.j("ne", narrow);
  for (const [copy, each] of scales.entries()) a.v("vmovups", [each, mem(AT.scales, 64 * copy)]);
  a.jmp(loaded);
  a.bind(narrow);
  emitLanes(a, { left: AT.width, constants: AT.constants, isPacked: false });
  a.v("vmovups", [scale, mem(AT.scales)], zeroing(LANE_MASK));
  a.bind(loaded);
}
