/**
 * @file Root-mean-square normalisation and its gradient as row programs; operands and scalars as in
 * the contract.
 */
import type { RowProgram, Value } from "../../codegen/vector/program.ts";
import { type Recorder, rowProgram } from "../../codegen/vector/recorder.ts";
import { floatOf, PARTIAL, row, vector } from "../row-operands.ts";

interface NormScalars {
  readonly epsilon: Value;
  readonly inverseColumns: Value;
}

/** 1 / √(squares · inverseColumns + epsilon) */
function inverseRms(v: Recorder, squares: Value, { epsilon, inverseColumns }: NormScalars): Value {
  return v.div(v.float(1), v.sqrt(v.fma(squares, inverseColumns, epsilon)));
}

/** `variant` is the dtype of out. */
export function rmsNormProgram(variant: string): RowProgram {
  return rowProgram({
    name: `rmsNorm/${variant}`,
    operands: { x: row(), gain: vector(), out: row(floatOf(variant)) },
    scalars: ["epsilon", "inverseColumns"],
    body(v, { x, gain, out }, scalars) {
      const { squares } = v.columns(() => {
        const value = v.load(x);
        return { squares: v.sumOfProducts(value, value) };
      });
      const inverse = inverseRms(v, squares, scalars);
      v.columns(
        () => {
          v.store(out, v.mul(v.mul(v.load(x), inverse), v.load(gain)));
        },
        { ahead: [x, out] },
      );
    },
  });
}

/** "f32.accumulate" adds to dX. */
export function rmsNormBackwardProgram(variant: string): RowProgram {
  return rowProgram({
    name: `rmsNormBackward/${variant}`,
    operands: { x: row(), gain: vector(), dOut: row(), dX: row(), dGain: PARTIAL },
    scalars: ["epsilon", "inverseColumns"],
    body(v, { x, gain, dOut, dX, dGain }, scalars) {
      const { squares, product } = v.columns(() => {
        const value = v.load(x);
        const scaled = v.mul(v.load(dOut), v.load(gain));
        return { squares: v.sumOfProducts(value, value), product: v.sumOfProducts(scaled, value) };
      });
      const inverse = inverseRms(v, squares, scalars);
      const mean = v.mul(v.mul(product, inverse), scalars.inverseColumns);
      v.columns(
        () => {
          const unit = v.mul(v.load(x), inverse);
          const gradient = v.load(dOut);
          const centred = v.sub(v.mul(gradient, v.load(gain)), v.mul(unit, mean));
          const result = variant.endsWith(".accumulate")
            ? v.fma(inverse, centred, v.load(dX))
            : v.mul(inverse, centred);
          v.store(dX, result);
          v.store(dGain, v.fma(gradient, unit, v.load(dGain)));
        },
        { ahead: [x, dOut, dX] },
      );
    },
  });
}

/** One task adds all rows of `partials`, in order, to the one vector `out`. */
export function sumPartialsProgram(variant: string): RowProgram {
  return rowProgram({
    name: `sumPartials/${variant}`,
    operands: { partials: row(), out: vector() },
    scalars: [],
    body(v, { partials, out }) {
      v.columns(() => {
        v.store(out, v.add(v.load(out), v.load(partials)));
      });
    },
  });
}
