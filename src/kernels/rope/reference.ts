/** @file Rotary position embedding on interleaved pairs, plainly. */
import type { KernelBody, ThreadContext } from "../../device/program.ts";
import type { FloatType } from "../../tensor/dtype.ts";
import { referenceRows, scalar } from "../reference-rows.ts";

export function createReferenceRope(variant: string, context: ThreadContext): KernelBody {
  const [dtype, count] = variant.split(".") as [FloatType, string];
  const dtypes = [...Array.from({ length: Number(count) }, () => dtype), "i32", dtype, dtype];
  return referenceRows(context, dtypes as (FloatType | "i32")[], (operands, at) => {
    const { row, columns } = at;
    const [positions, cos, sin] = operands.slice(-3);
    const position = positions!.get(row, 0);
    const direction = scalar(at, 0);
    for (const x of operands.slice(0, -3)) {
      for (let column = 0; column < columns; column += 2) {
        const even = x.get(row, column);
        const odd = x.get(row, column + 1);
        const cosine = cos!.get(position, column);
        const sine = sin!.get(position, column + 1) * direction;
        x.set(row, column, even * cosine - odd * sine);
        x.set(row, column + 1, odd * cosine + even * sine);
      }
    }
  });
}
