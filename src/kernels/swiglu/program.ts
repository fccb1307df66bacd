/** @file The gated activation and its gradient as row programs; operands as in the contract. */
import { expOfNegated, sigmoid } from "../../codegen/vector/math.ts";
import type { RowProgram } from "../../codegen/vector/program.ts";
import { rowProgram } from "../../codegen/vector/recorder.ts";
import { floatOf, perRow, row } from "../row-operands.ts";

/** "f32", "bf16", "f32.weighted" …: the dtype of out, and whether rows have weights. */
export function swigluProgram(variant: string): RowProgram {
  const [outDType, weighted] = variant.split(".");
  return rowProgram({
    name: `swiglu/${variant}`,
    operands: {
      ...{ gate: row(), up: row() },
      ...(weighted === undefined ? {} : { weight: perRow() }),
      out: row(floatOf(outDType)),
    },
    scalars: [],
    body(v, { gate, up, weight, out }) {
      const factor = weight === undefined ? null : v.loadPerRow(weight);
      v.columns(
        () => {
          const z = v.load(gate);
          const silu = v.div(z, v.add(v.float(1), expOfNegated(v, z)));
          const product = v.mul(silu, v.load(up));
          v.store(out, factor === null ? product : v.mul(product, factor));
        },
        { ahead: [gate, up, out] },
      );
    },
  });
}

/**
 * As above; the dtype is that of dGate, dUp and activation. Only the weighted variant writes
 * dWeight.
 */
export function swigluBackwardProgram(variant: string): RowProgram {
  const [outDType, weighted] = variant.split(".");
  return rowProgram({
    name: `swigluBackward/${variant}`,
    operands: {
      ...{ gate: row(), up: row() },
      ...(weighted === undefined ? {} : { weight: perRow(), dWeight: perRow() }),
      ...{ dOut: row(), dGate: row(floatOf(outDType)), dUp: row(floatOf(outDType)) },
      activation: row(floatOf(outDType)),
    },
    scalars: [],
    body(v, { gate, up, weight, dWeight, dOut, dGate, dUp, activation }) {
      const factor = weight === undefined ? null : v.loadPerRow(weight);
      const { weightGradient } = v.columns(
        () => {
          const z = v.load(gate);
          const upValue = v.load(up);
          const gradient = v.load(dOut);
          const s = sigmoid(v, z);
          const silu = v.mul(z, s);
          // d silu / dz = s + silu·(1 − s)
          const slope = v.fma(silu, v.sub(v.float(1), s), s);
          const scaled = factor === null ? gradient : v.mul(gradient, factor);
          v.store(dGate, v.mul(v.mul(scaled, upValue), slope));
          v.store(dUp, v.mul(scaled, silu));
          const product = v.mul(silu, upValue);
          v.store(activation, factor === null ? product : v.mul(product, factor));
          if (factor === null) return {};
          return { weightGradient: v.sumOfProducts(gradient, product) };
        },
        { ahead: [gate, dGate, dUp, activation] },
      );
      if (dWeight !== undefined && weightGradient !== undefined) {
        v.storePerRow(dWeight, weightGradient);
      }
    },
  });
}
