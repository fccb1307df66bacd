/** @file The gated activation and its gradient, plainly. */
import type { KernelBody, ThreadContext } from "../../device/program.ts";
import type { FloatType } from "../../tensor/dtype.ts";
import { referenceRows } from "../reference-rows.ts";

function sigmoid(z: number): number {
  return 1 / (1 + Math.exp(-z));
}

export function createReferenceSwiglu(variant: string, context: ThreadContext): KernelBody {
  const [outDType, weighted] = variant.split(".") as [FloatType | "bf16", string | undefined];
  const dtype = outDType === "f64" ? "f64" : "f32";
  const weights = weighted ? [dtype] : [];
  const dtypes = [dtype, dtype, ...weights, outDType] as (FloatType | "bf16")[];
  return referenceRows(context, dtypes, (operands, { row, columns }) => {
    const [gate, up, ...rest] = operands;
    const out = rest[rest.length - 1]!;
    const weight = weighted ? rest[0]!.get(row, 0) : 1;
    for (let column = 0; column < columns; column++) {
      const z = gate!.get(row, column);
      out.set(row, column, weight * z * sigmoid(z) * up!.get(row, column));
    }
  });
}

export function createReferenceSwigluBackward(variant: string, context: ThreadContext): KernelBody {
  const [outDType, weighted] = variant.split(".") as [FloatType | "bf16", string | undefined];
  const dtype = outDType === "f64" ? "f64" : "f32";
  const weights = weighted ? [dtype, dtype] : [];
  const outputs = [outDType, outDType, outDType];
  const dtypes = [dtype, dtype, ...weights, dtype, ...outputs] as (FloatType | "bf16")[];
  return referenceRows(context, dtypes, (operands, { row, columns }) => {
    const [gate, up] = operands;
    const [dOut, dGate, dUp, activation] = operands.slice(-4);
    const weight = weighted ? operands[2]!.get(row, 0) : 1;
    let dWeight = 0;
    for (let column = 0; column < columns; column++) {
      const z = gate!.get(row, column);
      const u = up!.get(row, column);
      const gradient = dOut!.get(row, column);
      const s = sigmoid(z);
      dWeight += gradient * z * s * u;
      dGate!.set(row, column, weight * gradient * u * s * (1 + z * (1 - s)));
      dUp!.set(row, column, weight * gradient * z * s);
      activation!.set(row, column, weight * z * s * u);
    }
    if (weighted) operands[3]!.set(row, 0, dWeight);
  });
}
