/**
 * @file The native function of the x64 matrix products: one cache block, packed and multiplied.
 *
 * Its slots are plain numbers; operands, panels and output are byte offsets from the memory's base.
 * The last ones are for scaled operands alone: pieces of depth, and addresses of their scales and
 * of the constants of their widening.
 */
import type { X64 } from "../../codegen/x64/assembler.ts";
import { emitKernel, loadSlot } from "../../codegen/x64/kernel-function.ts";
import { type Gp, type Memory, mem, r } from "../../codegen/x64/operands.ts";
import { slotIndex } from "../kernel.ts";
import type { Transposition } from "./block-multiplier.ts";
import type { RowsCore, X64Core } from "./x64-core.ts";
import {
  emitCopyingPack,
  emitTilePack,
  emitTransposingPack,
  emitWords,
  PACK_ARGUMENTS,
  type PanelFormat,
} from "./x64-pack.ts";
import { CORE_ARGUMENTS } from "./x64-vector-core.ts";

const SLOTS = [
  "a",
  "aStrideBytes",
  "b",
  "bStrideBytes",
  "out",
  "outStrideBytes",
  "rows",
  "columns",
  "depth",
  "accumulate",
  "aPanels",
  "bPanels",
  "packsA",
  "packsB",
  "buffer",
  "aConstants",
  "bConstants",
  "pieceWords",
  "aScales",
  "aScalesPanelBytes",
  "bScales",
  "bScalesPanelBytes",
] as const;

/** Position of each argument of a block product. */
export const BLOCK_AT: Record<(typeof SLOTS)[number], number> = slotIndex(SLOTS);
const AT = BLOCK_AT;

export type BlockSlot = (typeof SLOTS)[number];

const slotAt = (name: BlockSlot): Memory => mem(r.rdi, 8 * AT[name]);

/** destination = the address that a slot's offset means; while rcx holds the memory's base. */
export function loadAddress(a: X64, destination: Gp, name: BlockSlot): void {
  loadSlot(a, destination, AT[name]);
  a.add(destination, r.rcx);
}

/** Emits the packing of one operand, unless its slot says that the panels are there already. */
export function emitPack(
  a: X64,
  operand: "a" | "b",
  format: PanelFormat,
  isDepthContiguous: boolean,
): void {
  const done = a.label();
  const { source, strideBytes, panels, lanes, depth } = PACK_ARGUMENTS;
  a.cmp(slotAt(operand === "a" ? "packsA" : "packsB"), 0);
  a.j("e", done);
  loadAddress(a, source, operand);
  loadSlot(a, strideBytes, AT[`${operand}StrideBytes`]);
  loadAddress(a, panels, `${operand}Panels`);
  loadSlot(a, lanes, operand === "a" ? AT.rows : AT.columns);
  loadSlot(a, depth, AT.depth);
  const loadConstants = (to: Gp): void => loadSlot(a, to, AT[`${operand}Constants`]);
  if (isDepthContiguous) emitTransposingPack(a, format, { loadConstants });
  else if (format.layout === "tiles") emitTilePack(a, format);
  else emitCopyingPack(a, format, { loadConstants });
  a.bind(done);
}

/** Code that multiplies one cache block with `core`, A packed or where it stands (`rows`). */
export function emitBlockProduct(
  transposition: Transposition,
  core: X64Core,
  rows: RowsCore | null = null,
): Uint8Array {
  return emitKernel({
    numLocals: core.numLocals,
    body: (a, local) => {
      if (rows === null) emitPack(a, "a", core.aFormat, transposition !== "tn");
      emitPack(a, "b", core.bFormat, transposition === "nt");
      loadSlot(a, r.rax, AT.depth);
      emitWords(a, CORE_ARGUMENTS.words, r.rax, core.bFormat);
      loadAddress(a, CORE_ARGUMENTS.aPanels, rows === null ? "aPanels" : "a");
      for (const name of ["bPanels", "out"] as const) loadAddress(a, CORE_ARGUMENTS[name], name);
      for (const name of ["outStrideBytes", "rows"] as const) {
        loadSlot(a, CORE_ARGUMENTS[name], AT[name]);
      }
      const buffer = r.rdx;
      loadAddress(a, buffer, "buffer");
      // The memory's base is no longer needed; its register holds the columns.
      loadSlot(a, CORE_ARGUMENTS.columns, AT.columns);
      (rows ?? core).emit(a, { slotAt, buffer, local });
    },
  });
}
