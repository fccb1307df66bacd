/**
 * @file Tensors whose floats are checked while they are read: what is not finite is refused with
 * its tensor and file.
 *
 * One weight that is infinite or no number makes every result of a model no number, far from where
 * it came from. Checked are the bits as they are stored: codes of FP8 weights, and scales, as well.
 */
import { OperationalError } from "../base/errors.ts";
import { fromBf16 } from "../numerics/bf16.ts";
import type { StoredDtype, TensorReader } from "./tensors.ts";

/** The same tensors; disposing of them closes `reader`. */
export function finiteTensors(reader: TensorReader): TensorReader {
  const check = (name: string, bytes: Uint8Array): void => {
    const found = findNonFinite(reader.tensors.get(name)!.dtype, bytes);
    if (found === undefined) return;
    const path = reader.fileOf(name);
    throw new OperationalError(
      "checkpoint.nonfinite",
      `${path}: ${name} holds ${found.value} at element ${found.index}, and weights must be ` +
        "finite; take a checkpoint that was not edited or damaged",
      { path, name },
    );
  };
  return {
    tensors: reader.tensors,
    fileOf: (name) => reader.fileOf(name),
    read(name): Uint8Array<ArrayBuffer> {
      const bytes = reader.read(name);
      check(name, bytes);
      return bytes;
    },
    readInto(name, target): void {
      reader.readInto(name, target);
      check(name, target);
    },
    [Symbol.dispose]: () => reader[Symbol.dispose](),
  };
}

/**
 * How the elements of a dtype say that they are not finite: all bits of the mask are set. Floats of
 * other dtypes, as F64, are not here, for no weights or scales are read from them
 * (fp8-weights.ts, packed-integers.ts).
 */
const MASKS: Partial<Record<StoredDtype, number>> = {
  F32: 0x7f800000,
  BF16: 0x7f80,
  F16: 0x7c00,
  F8_E4M3: 0x7f,
};

/** The first element that is not finite; other dtypes have none. */
function findNonFinite(
  dtype: StoredDtype,
  bytes: Uint8Array,
): { readonly index: number; readonly value: number } | undefined {
  const mask = MASKS[dtype];
  if (mask === undefined) return undefined;
  const codes = codesOf(dtype, bytes);
  for (let index = 0; index < codes.length; index++) {
    if ((codes[index]! & mask) === mask) return { index, value: decode(dtype, codes[index]!) };
  }
  return undefined;
}

function codesOf(dtype: StoredDtype, bytes: Uint8Array): Uint8Array | Uint16Array | Uint32Array {
  if (dtype === "F8_E4M3") return bytes;
  const { buffer, byteOffset, length } = bytes.byteOffset % 4 === 0 ? bytes : bytes.slice();
  if (dtype === "F32") return new Uint32Array(buffer, byteOffset, length / 4);
  return new Uint16Array(buffer, byteOffset, length / 2);
}

/** Of a code that is not finite. */
function decode(dtype: StoredDtype, code: number): number {
  if (dtype === "F32") return new Float32Array(Uint32Array.of(code).buffer)[0]!;
  if (dtype === "F16") return new Float16Array(Uint16Array.of(code).buffer)[0]!;
  return dtype === "BF16" ? fromBf16(code) : Number.NaN;
}
