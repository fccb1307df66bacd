/**
 * @file Products of many rows with coded weights, in x86-64 machine code: one cache block.
 *
 * Codes are opened to bf16 while they are packed (x64-expand.ts); the tiles are those of
 * matmul/x64-vector-core.ts, summed group by group, and each group's sums take their offset and
 * scale on the way to the output, which stays in the first-level cache meanwhile.
 */
import type { X64 } from "../../codegen/x64/assembler.ts";
import { emitKernel, loadSlot } from "../../codegen/x64/kernel-function.ts";
import { bcst, type Memory, mem, r, zmm } from "../../codegen/x64/operands.ts";
import { BLOCK_AT, type BlockSlot, emitPack, loadAddress } from "../matmul/x64-block.ts";
import { emitWords } from "../matmul/x64-pack.ts";
import {
  CORE_ARGUMENTS,
  emitEachVector,
  emitEither,
  emitPanels,
  emitSums,
  TILE_ARGUMENTS,
  TILE_COLUMNS,
  TILE_ROWS,
  type Tile,
} from "../matmul/x64-vector-core.ts";
import { emitExpand, emitLoadTables, STEP_WORDS, wordsPerVector } from "./x64-expand.ts";
import {
  type CodedCore,
  emitGroupSums,
  emitLoadOffsets,
  emitLoadScales,
  rowFormat,
  scaleBytes,
} from "./x64-parts.ts";

const LOCALS = [
  "aSums",
  "bScales",
  "bOffsets",
  "scalesPanelBytes",
  "offsetsPanelBytes",
  "aGroupSums",
  "bGroupScales",
  "bGroupOffsets",
  "wordsLeft",
  "pieceWords",
  "outRow",
  "adds",
] as const;
type LocalName = (typeof LOCALS)[number];

const A_FORMAT = rowFormat(TILE_ROWS);

/** Columns and depth (in words) of a block of codes that is opened at once, and rows of `a`. */
export const BLOCK = { columns: 256, words: 512, rows: 1536 } as const;

/** Code that multiplies one cache block. */
export function emitCodedBlock(core: CodedCore): Uint8Array {
  return emitKernel({
    numLocals: LOCALS.length,
    body: (a, localAt) => {
      const local = (name: LocalName): Memory => localAt(LOCALS.indexOf(name));
      const packed = a.label();
      emitPack(a, "a", A_FORMAT, true);
      a.cmp(mem(r.rdi, 8 * BLOCK_AT.packsA), 0);
      a.j("e", packed);
      emitGroupSums(a, core, A_FORMAT);
      a.bind(packed);
      emitPackCodes(a, core);
      emitCore(a, core, local);
    },
  });
}

/** Codes of all columns into panels of 32: bPanels[panel][word][32 columns]. */
function emitPackCodes(a: X64, { format }: CodedCore): void {
  const [codes, panelBytes, columnsLeft, to] = [r.rsi, r.r8, r.r9, r.r10];
  const [words, steps, from, at, half] = [r.r11, r.rbx, r.rbp, r.r12, r.r13];
  loadSlot(a, r.rax, BLOCK_AT.aConstants);
  emitLoadTables(a, format, r.rax);
  loadAddress(a, codes, "b");
  loadSlot(a, panelBytes, BLOCK_AT.bStrideBytes);
  loadSlot(a, columnsLeft, BLOCK_AT.columns);
  loadAddress(a, to, "bPanels");
  loadSlot(a, r.rax, BLOCK_AT.depth);
  emitWords(a, words, r.rax, A_FORMAT);
  a.mov(half, 0);
  const perVector = wordsPerVector(format);
  const rowBytes = TILE_COLUMNS * 4;
  a.countdown(columnsLeft, 16, () => {
    a.mov(from, codes);
    a.lea(at, mem(to, 0, half, 1));
    a.mov(steps, words);
    a.countdown(steps, STEP_WORDS, () => {
      for (let vector = 0; vector < STEP_WORDS / perVector; vector++) {
        emitExpand(a, format, mem(from, 64 * vector), (word, register) => {
          a.v("vmovups", [mem(at, (vector * perVector + word) * rowBytes), register]);
        });
      }
      a.add(from, (STEP_WORDS / perVector) * 64);
      a.add(at, STEP_WORDS * rowBytes);
    });
    a.add(codes, panelBytes);
    // The other half of this panel, or the first of the next.
    const next = a.label();
    a.xor(half, 64);
    a.cmp(half, 0);
    a.j("ne", next);
    a.imul(r.rax, words, rowBytes);
    a.add(to, r.rax);
    a.bind(next);
  });
}

function emitCore(a: X64, core: CodedCore, local: (name: LocalName) => Memory): void {
  loadSlot(a, r.rax, BLOCK_AT.depth);
  emitWords(a, CORE_ARGUMENTS.words, r.rax, A_FORMAT);
  for (const name of ["aPanels", "bPanels", "out"] as const) {
    loadAddress(a, CORE_ARGUMENTS[name], name);
  }
  for (const name of ["outStrideBytes", "rows"] as const) {
    loadSlot(a, CORE_ARGUMENTS[name], BLOCK_AT[name]);
  }
  // The memory's base is no longer needed; its register holds the columns.
  loadSlot(a, CORE_ARGUMENTS.columns, BLOCK_AT.columns);
  const setFromSlot = (name: LocalName, slot: BlockSlot): void => {
    loadSlot(a, r.rax, BLOCK_AT[slot]);
    a.mov(local(name), r.rax);
  };
  const toFirstColumns = (): void => {
    setFromSlot("bScales", "bScales");
    setFromSlot("bOffsets", "bConstants");
  };
  toFirstColumns();
  setFromSlot("aSums", "aScales");
  setFromSlot("pieceWords", "pieceWords");
  setFromSlot("scalesPanelBytes", "bScalesPanelBytes");
  a.shr(r.rax, 1);
  a.mov(local("offsetsPanelBytes"), r.rax);
  emitPanels(a, {
    panelRows: TILE_ROWS,
    emitTile: (tile) => emitTile(a, core, tile, local),
    afterColumns: () => {
      loadSlot(a, r.rax, BLOCK_AT.bScalesPanelBytes);
      a.add(local("bOffsets"), r.rax);
      a.add(r.rax, r.rax);
      a.add(local("bScales"), r.rax);
    },
    afterRows: () => {
      loadSlot(a, r.rax, BLOCK_AT.aScalesPanelBytes);
      a.add(local("aSums"), r.rax);
      toFirstColumns();
    },
  });
}

function emitTile(a: X64, core: CodedCore, tile: Tile, local: (name: LocalName) => Memory): void {
  const { outRow, wordsLeft, a: aPanel } = TILE_ARGUMENTS;
  a.mov(local("outRow"), outRow);
  // The tile's first row stands as far into its panel's sums as into its panel's words.
  a.mov(r.rax, aPanel);
  a.sub(r.rax, CORE_ARGUMENTS.aPanels);
  a.add(r.rax, local("aSums"));
  a.mov(local("aGroupSums"), r.rax);
  a.mov(r.rax, local("bScales"));
  a.mov(local("bGroupScales"), r.rax);
  a.mov(r.rax, local("bOffsets"));
  a.mov(local("bGroupOffsets"), r.rax);
  a.mov(r.rax, mem(r.rdi, 8 * BLOCK_AT.accumulate));
  a.mov(local("adds"), r.rax);
  a.mov(local("wordsLeft"), CORE_ARGUMENTS.words);
  const nextGroup = a.label();
  a.bind(nextGroup);
  a.mov(wordsLeft, local("pieceWords"));
  a.cmp(wordsLeft, local("wordsLeft"));
  a.cmov("g", wordsLeft, local("wordsLeft"));
  a.sub(local("wordsLeft"), wordsLeft);
  emitSums(a, tile, "bf16");
  a.mov(outRow, local("outRow"));
  emitPromotion(a, core, tile, local);
  a.mov(r.rax, 1);
  a.mov(local("adds"), r.rax);
  a.add(local("aGroupSums"), TILE_ROWS * 4);
  a.add(local("bGroupScales"), scaleBytes(core));
  a.add(local("bGroupOffsets"), scaleBytes(core) / 2);
  a.cmp(local("wordsLeft"), 0);
  a.j("g", nextGroup);
}

/** A group's sums, their offset and scale, into the output. */
function emitPromotion(
  a: X64,
  core: CodedCore,
  tile: Tile,
  local: (name: LocalName) => Memory,
): void {
  const [scales, offsets] = [[zmm(24), zmm(25)] as const, [zmm(26), zmm(27)] as const];
  a.mov(r.rax, local("bGroupScales"));
  for (let v = 0; v < tile.vectors; v++) {
    emitLoadScales(a, core, scales[v]!, mem(r.rax));
    a.add(r.rax, local("scalesPanelBytes"));
  }
  if (core.hasOffsets) {
    a.mov(r.rax, local("bGroupOffsets"));
    for (let v = 0; v < tile.vectors; v++) {
      emitLoadOffsets(a, offsets[v]!, mem(r.rax));
      a.add(r.rax, local("offsetsPanelBytes"));
    }
    a.mov(r.rax, local("aGroupSums"));
  }
  emitEither(a, local("adds"), (adds) =>
    emitEachVector(a, tile, ({ row, vector, sum, at, mask }) => {
      if (core.hasOffsets) {
        a.v("vfmadd231ps", [sum, offsets[vector]!, bcst(mem(r.rax, row * 4))]);
      }
      if (adds) a.v("vfmadd213ps", [sum, scales[vector]!, at], mask);
      else a.v("vmulps", [sum, sum, scales[vector]!]);
      a.v("vmovups", [at, sum], mask);
    }),
  );
}
