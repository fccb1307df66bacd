/**
 * @file Operands for conformance cases: random values in awkward places, guarded on all sides.
 *
 * Two makers with one seed make the same operands on two devices. Matrices start at odd element
 * offsets and have gaps between their rows; all that no kernel may touch, and every output, is
 * filled with poison: NaN with a payload. A kernel that reads outside its operands meets NaN; one
 * that writes outside is caught by `disturbedGuard`. One operand may stand at the very end of the
 * memory, where an access beyond it is a crash.
 */
import { assert } from "../../base/errors.ts";
import { Random } from "../../base/random.ts";
import type { Device } from "../../device/device.ts";
import type { Span } from "../../device/program.ts";
import type { Arena } from "../../tensor/arena.ts";
import { DTYPE_BYTES, type DType } from "../../tensor/dtype.ts";
import { makeTensor, type Tensor } from "../../tensor/tensor.ts";
import { elementsAt } from "../views.ts";

/** Byte pattern of poison: as f32 0x7fc57fc5, as bf16 0x7fc5, as f64 as well, a NaN. */
const POISON_BYTES: readonly number[] = [0xc5, 0x7f];
/** Elements of poison before and after each operand. */
const GUARD_ELEMENTS = 67;

export interface MatrixOptions {
  /** No gap between rows. */
  readonly contiguous?: boolean;
}

/** Puts one operand, by its number in order of making, flush against the end of the memory. */
export interface EndPlace {
  readonly operand: number;
  /** Reserved bytes that end where the memory ends. */
  readonly block: Span;
}

/** Operands of one case on one device. */
export class TensorMaker {
  readonly device: Device;
  readonly arena: Arena;
  readonly random: Random;
  readonly #endPlace: EndPlace | undefined;
  readonly #guarded: { readonly tensor: Tensor; readonly start: number; readonly end: number }[] =
    [];

  constructor(device: Device, arena: Arena, seed: number, label: string, endPlace?: EndPlace) {
    this.#endPlace = endPlace;
    this.device = device;
    this.arena = arena;
    this.random = new Random(seed, label);
  }

  /** An output: poison all over. */
  poisoned<D extends DType>(
    dtype: D,
    shape: readonly number[],
    options?: MatrixOptions,
  ): Tensor<D> {
    const columns = shape[shape.length - 1]!;
    const rows = shape.slice(0, -1).reduce((product, dimension) => product * dimension, 1);
    const gap = options?.contiguous === true || rows <= 1 ? 0 : this.random.below(21);
    const lead = GUARD_ELEMENTS + this.random.below(17);
    const elementBytes = DTYPE_BYTES[dtype];
    const span = rows === 0 ? 0 : (rows - 1) * (columns + gap) + columns;
    const [start, end] =
      this.#endPlace?.operand === this.#guarded.length
        ? this.#endOfMemory(this.#endPlace.block, (lead + span) * elementBytes)
        : this.#allocate((lead + span + gap + GUARD_ELEMENTS) * elementBytes);
    const bytes = this.device.memory.u8;
    for (let at = start; at < end; at++) bytes[at] = POISON_BYTES[at % 2]!;
    const byteOffset = start + lead * elementBytes;
    const tensor = makeTensor(this.device.memory, dtype, shape, byteOffset, columns + gap);
    this.#guarded.push({ tensor, start, end });
    return tensor;
  }

  #allocate(byteLength: number): readonly [start: number, end: number] {
    const { byteOffset } = this.arena.allocate("u8", [1, byteLength]);
    return [byteOffset, byteOffset + byteLength];
  }

  #endOfMemory(block: Span, byteLength: number): readonly [start: number, end: number] {
    assert(byteLength <= block.byteLength, `an operand of ${byteLength} bytes fits the last block`);
    const end = block.byteOffset + block.byteLength;
    return [end - byteLength, end];
  }

  /** Values from `draw`, row by row. */
  filled<D extends DType>(
    dtype: D,
    shape: readonly number[],
    draw: (row: number, column: number) => number,
    options?: MatrixOptions,
  ): Tensor<D> {
    const tensor = this.poisoned(dtype, shape, options);
    const elements = elementsAt(this.device.memory, dtype, tensor.byteOffset);
    for (let row = 0; row < tensor.rows; row++) {
      for (let column = 0; column < tensor.columns; column++) {
        elements.set(row * tensor.rowStride + column, draw(row, column));
      }
    }
    return tensor;
  }

  /** Standard normal values. */
  normal<D extends DType>(dtype: D, shape: readonly number[], options?: MatrixOptions): Tensor<D> {
    return this.filled(dtype, shape, () => this.random.normal(), options);
  }

  /** Whole numbers in [least, end). */
  integers(shape: readonly number[], least: number, end: number): Tensor<"i32"> {
    const draw = (): number => least + this.random.below(end - least);
    return this.filled("i32", shape, draw, { contiguous: true });
  }

  /** The first guard byte that a kernel has changed, described; null if none. */
  disturbedGuard(): string | null {
    const bytes = this.device.memory.u8;
    for (const { tensor, start, end } of this.#guarded) {
      const elementBytes = DTYPE_BYTES[tensor.dtype];
      for (let at = start; at < end; at++) {
        if (bytes[at] === POISON_BYTES[at % 2]) continue;
        const element = Math.floor((at - tensor.byteOffset) / elementBytes);
        const row = Math.floor(element / Math.max(1, tensor.rowStride));
        const column = element - row * tensor.rowStride;
        const inside = row >= 0 && row < tensor.rows && column >= 0 && column < tensor.columns;
        if (!inside) {
          return (
            `wrote outside a ${tensor.dtype} operand of ${tensor.rows}×${tensor.columns}: ` +
            `at row ${row}, column ${column}`
          );
        }
      }
    }
    return null;
  }
}

/** The elements of a tensor as f32, row by row without gaps. */
export function readTensor(tensor: Tensor): Float32Array {
  const elements = elementsAt(tensor.memory, tensor.dtype, tensor.byteOffset);
  const values = new Float32Array(tensor.rows * tensor.columns);
  for (let row = 0; row < tensor.rows; row++) {
    for (let column = 0; column < tensor.columns; column++) {
      values[row * tensor.columns + column] = elements.get(row * tensor.rowStride + column);
    }
  }
  return values;
}
