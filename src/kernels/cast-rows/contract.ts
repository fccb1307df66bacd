/**
 * @file Copy rows, changing the dtype on the way: f32 → bf16 (nearest even), bf16 → f32 (exact),
 * f32 → f32, f64 → f64.
 *
 *     out_RC = x_RC
 *
 * The output does not overlap the input.
 */
import { assert } from "../../base/errors.ts";
import type { Device } from "../../device/device.ts";
import type { Tensor } from "../../tensor/tensor.ts";
import { assertMatrix, assertOperand } from "../door.ts";
import { launchRows, matrix } from "../launch-rows.ts";

/** "from.to". */
export const CAST_ROWS_VARIANTS = ["f32.bf16", "bf16.f32", "f32.f32", "f64.f64"] as const;
export type CastDType = "f32" | "bf16" | "f64";

export interface CastRowsCall {
  readonly x: Tensor<CastDType>;
  readonly out: Tensor<CastDType>;
}

export function castRows(device: Device, { x, out }: CastRowsCall): void {
  const variant = `${x.dtype}.${out.dtype}`;
  assert(
    (CAST_ROWS_VARIANTS as readonly string[]).includes(variant),
    `castRows: no cast from ${x.dtype} to ${out.dtype}`,
  );
  assertOperand(device, "castRows x", x);
  assertMatrix(device, "castRows out", out, [out.dtype], x.rows, x.columns);
  launchRows(device, `castRows/${variant}`, {
    rows: x.rows,
    columns: x.columns,
    operands: [matrix(x), matrix(out)],
  });
}
