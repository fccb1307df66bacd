/**
 * @file Rows of the next head, asked for while weights of this one are computed: a head's rows
 * stand far apart, and the processor finds no pattern in them before they are over.
 */
import { loadSlot } from "../../codegen/x64/kernel-function.ts";
import { mem, r } from "../../codegen/x64/operands.ts";
import { inScratch, LINE_BYTES, TILED_AT, type TiledCode } from "./x64-frame.ts";

/** Slots of the next head's first row and of the stride; columns of a row. */
export interface AskedRows {
  readonly base: number;
  readonly stride: number;
  readonly columns: number;
}

/** Where the next row's address and the stride stand; before them all the rows that are left. */
function cell({ at }: TiledCode, index: number): number {
  return at.asked + 8 + 16 * index;
}

/** Begin with the first rows. */
export function emitAskSetUp(code: TiledCode, rows: readonly AskedRows[]): void {
  const { a, at } = code;
  loadSlot(a, r.rax, TILED_AT.askedRows);
  a.mov(inScratch(at.asked), r.rax);
  for (const [index, { base, stride }] of rows.entries()) {
    loadSlot(a, r.rax, base);
    a.mov(inScratch(cell(code, index)), r.rax);
    loadSlot(a, r.rax, stride);
    a.mov(inScratch(cell(code, index) + 8), r.rax);
  }
}

/** Ask for the next row of each; clobbers rax. */
export function emitAsk(code: TiledCode, rows: readonly AskedRows[]): void {
  const { a, at } = code;
  const none = a.label();
  a.sub(inScratch(at.asked), 1);
  a.j("l", none);
  for (const [index, { columns }] of rows.entries()) {
    a.mov(r.rax, inScratch(cell(code, index)));
    for (let byte = 0; byte < columns * 4; byte += LINE_BYTES) {
      a.prefetch(mem(r.rax, byte), 1);
    }
    a.add(r.rax, inScratch(cell(code, index) + 8));
    a.mov(inScratch(cell(code, index)), r.rax);
  }
  a.bind(none);
}
