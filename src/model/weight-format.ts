/**
 * @file What a model that is only to infer keeps of its weights, instead of master values; and how
 * people write it.
 *
 *     bf16          every matrix in bf16
 *     fp8           linear layers and experts as E4M3 with a scale for each 128×128 block
 *     int8, int4    linear layers and experts as integers, a bf16 scale for 32 values of a row; the
 *                   head in int8 in both
 *     int4:g64a     groups of 64 (g32, g64, g128); a: asymmetric, with a zero point a group
 *
 * Never coded: the embedding, gates, norms, projections of MTP modules, and W_UKV, which attention
 * over the latent cache absorbs.
 */
import { OperationalError } from "../base/errors.ts";
import {
  GROUP_SIZES,
  type GroupRule,
  type GroupSize,
  type IntegerBits,
} from "../numerics/integer-groups.ts";
import { SCALE_BLOCK } from "../numerics/scales.ts";
import type { CodedShape } from "../tensor/coded-weight.ts";
import { isScalable, type ParameterDeclaration } from "./parameter-declarations.ts";

export type WeightFormat = "bf16" | "fp8" | GroupRule;

/** What `--weights` takes, for people. */
export const WEIGHTS_NOTATION = "f32, bf16, fp8, int8 or int4; integers with :g32, :g64, :g128, a";

const DEFAULT_GROUP = GROUP_SIZES[0];

/** "int4:g64a" and the like; f32 means master values. */
export function parseWeightFormat(notation: string): WeightFormat | "f32" {
  if (notation === "f32" || notation === "bf16" || notation === "fp8") return notation;
  const [, bits, options, group, asymmetric] =
    /^int(8|4)(:(?:g(32|64|128))?(a)?)?$/.exec(notation) ?? [];
  if (bits === undefined || options === ":") {
    throw new OperationalError(
      "usage.weights",
      `weights (${notation}) must be ${WEIGHTS_NOTATION} (asymmetric), such as int4:g64a`,
    );
  }
  return {
    bits: Number(bits) as IntegerBits,
    groupSize: (group === undefined ? DEFAULT_GROUP : Number(group)) as GroupSize,
    asymmetric: asymmetric !== undefined,
  };
}

/** The notation of a format. */
export function weightNotation(format: WeightFormat): string {
  if (typeof format === "string") return format;
  const { bits, groupSize, asymmetric } = format;
  return `int${bits}:g${groupSize}${asymmetric ? "a" : ""}`;
}

/** The integers that a parameter is kept in under a rule; null if it stays bf16. */
export function integerRuleOf(
  declaration: Pick<ParameterDeclaration, "name" | "role">,
  rule: GroupRule,
): GroupRule | null {
  if (declaration.role === "head") return { ...rule, bits: 8 };
  return isCodable(declaration) ? rule : null;
}

function isCodable(declaration: Pick<ParameterDeclaration, "name" | "role">): boolean {
  return isScalable(declaration) && !declaration.name.endsWith(".keyValueUp");
}

/** The coded form of a parameter, experts being so many; null if it is not coded. */
export function codedShapeOf(
  declaration: ParameterDeclaration,
  numExperts: number,
  format: WeightFormat,
): CodedShape | null {
  const [rows, columns] = declaration.shape;
  const numMatrices = declaration.role === "experts" ? numExperts : 1;
  const size = { rows, columns, numMatrices };
  if (format === "bf16") return null;
  if (format === "fp8") {
    if (!isCodable(declaration)) return null;
    return { ...size, format: "e4m3", groupSize: SCALE_BLOCK, asymmetric: false };
  }
  const rule = integerRuleOf(declaration, format);
  if (rule === null) return null;
  const { bits, groupSize, asymmetric } = rule;
  return { ...size, format: bits === 8 ? "int8" : "int4", groupSize, asymmetric };
}
