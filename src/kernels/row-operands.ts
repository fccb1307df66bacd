/** @file How row kernels declare their operands, in few words. */
import type { OperandDeclaration, OperandDType } from "../codegen/vector/recorder.ts";

/** One row a row of the launch. */
export function row(dtype: OperandDType = "f32"): OperandDeclaration {
  return { kind: "row", dtype };
}

/** One vector for all rows. */
export function vector(dtype: OperandDType = "f32"): OperandDeclaration {
  return { kind: "vector", dtype };
}

/** One value a row. */
export function perRow(dtype: "f32" | "i32" = "f32"): OperandDeclaration {
  return { kind: "perRow", dtype };
}

/** A row chosen by an index. */
export function gathered(dtype: OperandDType = "f32"): OperandDeclaration {
  return { kind: "gathered", dtype };
}

/** Several operands alike: "x0", "x1" … */
export function numbered(
  prefix: string,
  count: number,
  operand: OperandDeclaration,
): Readonly<Record<string, OperandDeclaration>> {
  return Object.fromEntries(
    Array.from({ length: count }, (_, index) => [`${prefix}${index}`, operand]),
  );
}

/** One f32 vector a task, zero before its first row. */
export const PARTIAL: OperandDeclaration = { kind: "partial", dtype: "f32" };

/** f32 or bf16, from a part of a variant's name. */
export function floatOf(part: string | undefined): "f32" | "bf16" {
  return part === "bf16" ? "bf16" : "f32";
}
