/**
 * @file Quantisation by tiles, plainly: amax, scale and codes of one tile after another. Bit-exact
 * by contract, so this is also the definition.
 */
import { floorDiv } from "../../base/integers.ts";
import type { CpuMemory } from "../../device/cpu/memory.ts";
import type { KernelBody, ThreadContext } from "../../device/program.ts";
import { E5M6, fromE5m6 } from "../../numerics/e5m6.ts";
import { E4M3, E5M2 } from "../../numerics/fp8.ts";
import { powerOfTwoNotBelow } from "../../numerics/scales.ts";
import { encodeSmallFloat, type SmallFloat } from "../../numerics/small-float.ts";
import type { ScaledFormat } from "../../tensor/scaled-tensor.ts";
import { slot } from "../kernel.ts";
import { elementsAt } from "../views.ts";
import { type BandSlots, eachPatch, type Patch, readBandSlots, scaleRowAt } from "./bands.ts";
import {
  DEQUANTIZE_TILES_AT,
  type OpenDType,
  QUANTIZE_TILES_AT,
  type TileScaleRule,
} from "./contract.ts";
import { readRule, readSource } from "./slots.ts";

export const FORMATS: Readonly<Record<ScaledFormat, SmallFloat>> = {
  e4m3: E4M3,
  e5m2: E5M2,
  e5m6: E5M6,
};

/** A matrix of numbers, whatever they are stored as. */
interface Matrix {
  get(row: number, column: number): number;
  set(row: number, column: number, value: number): void;
}

export function createReferenceQuantizeTiles(variant: string, context: ThreadContext): KernelBody {
  const [from, to] = variant.split(".") as [OpenDType, ScaledFormat];
  const { memory } = context;
  return (slots, firstTask, endTask) => {
    const grid = readBandSlots(slots);
    const x = openMatrix(memory, from, slots, QUANTIZE_TILES_AT.openOffset);
    const rule = readRule(slots);
    const out = codeMatrix(memory, to, grid);
    eachPatch(memory, grid, { firstTask, endTask }, (patch) => {
      quantizePatch(memory, { grid, patch, format: FORMATS[to], rule, out, valueAt: x.get });
    });
  };
}

export function createReferenceRetile(variant: string, context: ThreadContext): KernelBody {
  const [from, to] = variant.split(".") as [ScaledFormat, ScaledFormat];
  const { memory } = context;
  return (slots, firstTask, endTask) => {
    const grid = readBandSlots(slots);
    const source = readSource(slots);
    const x = codeMatrix(memory, from, source);
    const valueAt = (row: number, column: number): number =>
      Math.fround(x.get(row, column) * scaleAt(memory, source, scaleRowAt(source, row), column));
    const rule = readRule(slots);
    const out = codeMatrix(memory, to, grid);
    eachPatch(memory, grid, { firstTask, endTask }, (patch) => {
      quantizePatch(memory, { grid, patch, format: FORMATS[to], rule, out, valueAt });
    });
  };
}

export function createReferenceDequantizeTiles(
  variant: string,
  context: ThreadContext,
): KernelBody {
  const [from, to] = variant.split(".") as [ScaledFormat, OpenDType];
  const { memory } = context;
  return (slots, firstTask, endTask) => {
    const grid = readBandSlots(slots);
    const out = openMatrix(memory, to, slots, DEQUANTIZE_TILES_AT.openOffset);
    const codes = codeMatrix(memory, from, grid);
    eachPatch(memory, grid, { firstTask, endTask }, (patch) => {
      for (let row = patch.firstRow; row < patch.endRow; row++) {
        for (let column = patch.firstColumn; column < patch.endColumn; column++) {
          const scale = scaleAt(memory, grid, patch.band, column);
          out.set(row, column, Math.fround(codes.get(row, column) * scale));
        }
      }
    });
  };
}

/** All tiles of a patch, which is whole tiles wide. */
function quantizePatch(
  memory: CpuMemory,
  work: {
    readonly grid: BandSlots;
    readonly patch: Patch;
    readonly format: SmallFloat;
    readonly rule: TileScaleRule;
    readonly out: Matrix;
    readonly valueAt: (row: number, column: number) => number;
  },
): void {
  const { grid, patch, format, rule, out, valueAt } = work;
  const { firstRow, endRow } = patch;
  for (let start = patch.firstColumn; start < patch.endColumn; start += grid.tileColumns) {
    const end = Math.min(start + grid.tileColumns, patch.endColumn);
    let amax = 0;
    for (let row = firstRow; row < endRow; row++) {
      for (let column = start; column < end; column++) {
        const magnitude = Math.abs(valueAt(row, column));
        if (magnitude > amax) amax = magnitude;
      }
    }
    const quotient = Math.fround(Math.max(amax, rule.amaxMin) / format.largest);
    const scale = rule.powerOfTwo ? powerOfTwoNotBelow(quotient) : quotient;
    memory.f32[scaleIndex(grid, patch.band, start)] = scale;
    for (let row = firstRow; row < endRow; row++) {
      for (let column = start; column < end; column++) {
        out.set(row, column, encodeSmallFloat(format, valueAt(row, column) / scale));
      }
    }
  }
}

function scaleIndex(grid: BandSlots, scaleRow: number, column: number): number {
  const { scalesOffset, scaleRowStride, tileColumns } = grid;
  return scalesOffset / 4 + scaleRow * scaleRowStride + floorDiv(column, tileColumns);
}

function scaleAt(memory: CpuMemory, grid: BandSlots, scaleRow: number, column: number): number {
  return memory.f32[scaleIndex(grid, scaleRow, column)]!;
}

/** The operand whose offset and row stride stand at `at`. */
function openMatrix(memory: CpuMemory, dtype: OpenDType, slots: Float64Array, at: number): Matrix {
  const elements = elementsAt(memory, dtype, slot(slots, at));
  const stride = slot(slots, at + 1);
  return {
    get: (row, column) => elements.get(row * stride + column),
    set: (row, column, value) => elements.set(row * stride + column, value),
  };
}

/** Codes: read as values, written as codes. */
function codeMatrix(memory: CpuMemory, format: ScaledFormat, grid: BandSlots): Matrix {
  const { codesOffset, codesRowStride } = grid;
  const bytes = memory.u8;
  if (format !== "e5m6") {
    const { values } = FORMATS[format];
    return {
      get: (row, column) => values[bytes[codesOffset + row * codesRowStride + column]!]!,
      set: (row, column, code) => {
        bytes[codesOffset + row * codesRowStride + column] = code;
      },
    };
  }
  return packedMatrix(bytes, codesOffset, codesRowStride);
}

/** E5M6, two codes in three bytes; the unused half byte after an odd last code is made zero. */
function packedMatrix(bytes: Uint8Array, offset: number, rowStride: number): Matrix {
  const byteOf = (row: number, column: number): number =>
    offset + row * rowStride + 3 * (column >> 1) + (column & 1);
  return {
    get: (row, column) => {
      const at = byteOf(row, column);
      const word = bytes[at]! | (bytes[at + 1]! << 8);
      return fromE5m6(column % 2 === 0 ? word & 0xfff : word >> 4);
    },
    set: (row, column, code) => {
      const at = byteOf(row, column);
      if (column % 2 === 0) {
        bytes[at] = code;
        bytes[at + 1] = code >> 8;
      } else {
        bytes[at] = (bytes[at]! & 0xf) | (code << 4);
        bytes[at + 1] = code >> 4;
      }
    },
  };
}
