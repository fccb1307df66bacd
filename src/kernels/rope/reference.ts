/** @file Rotary position embedding on interleaved pairs, plainly. */
import type { KernelBody, ThreadContext } from "../../device/program.ts";
import type { FloatType } from "../../tensor/dtype.ts";
import { referenceRows, scalar } from "../reference-rows.ts";

export function createReferenceRope(variant: string, context: ThreadContext): KernelBody {
  const dtype = variant as FloatType;
  return referenceRows(context, [dtype, "i32", dtype, dtype], ([x, positions, cos, sin], at) => {
    const { row, columns } = at;
    const position = positions!.get(row, 0);
    const direction = scalar(at, 0);
    for (let column = 0; column < columns; column += 2) {
      const even = x!.get(row, column);
      const odd = x!.get(row, column + 1);
      const cosine = cos!.get(position, column);
      const sine = sin!.get(position, column + 1) * direction;
      x!.set(row, column, even * cosine - odd * sine);
      x!.set(row, column + 1, odd * cosine + even * sine);
    }
  });
}
