/** @file Copying rows into another dtype, plainly. */
import type { KernelBody, ThreadContext } from "../../device/program.ts";
import { referenceRows } from "../reference-rows.ts";
import type { CastDType } from "./contract.ts";

export function createReferenceCastRows(variant: string, context: ThreadContext): KernelBody {
  const [from, to] = variant.split(".") as [CastDType, CastDType];
  return referenceRows(context, [from, to], ([x, out], { row, columns }) => {
    for (let column = 0; column < columns; column++) out!.set(row, column, x!.get(row, column));
  });
}
