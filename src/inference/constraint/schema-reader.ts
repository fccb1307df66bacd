/**
 * @file Schemas as data: references followed, keywords checked, types read.
 *
 * A keyword that is not supported is refused with its name and its place; only annotations, which
 * constrain nothing, are passed over. Sizes and depth are limited before anything else is done.
 */
import { refuse } from "./network.ts";

const SCHEMA_CHARACTERS_MAX = 500_000;

export type Schema = Readonly<Record<string, unknown>>;

export const TYPES = ["object", "array", "string", "number", "integer", "boolean", "null"] as const;
export type JsonType = (typeof TYPES)[number];

const ANNOTATIONS = [
  "title",
  "description",
  "default",
  "example",
  "examples",
  "deprecated",
  "readOnly",
  "writeOnly",
  "$comment",
  "$schema",
  "$defs",
  "definitions",
];

/** Keywords that constrain the values of one type. */
export const KEYWORDS_OF_TYPE: Readonly<Record<string, readonly string[]>> = {
  object: ["properties", "required", "additionalProperties"],
  array: ["items", "prefixItems", "minItems", "maxItems"],
  string: ["minLength", "maxLength", "pattern", "format"],
  integer: ["minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"],
};

export function isObject(value: unknown): value is Schema {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

/** The size of a schema, and that it can be walked: nothing is deeper than JSON.stringify goes. */
export function checkSchemaSize(schema: unknown): void {
  const text = textOf(schema);
  if (text.length > SCHEMA_CHARACTERS_MAX) {
    refuse("schema", `the schema has ${text.length} characters; at most ${SCHEMA_CHARACTERS_MAX}`);
  }
}

function textOf(schema: unknown): string {
  try {
    return JSON.stringify(schema) ?? "";
  } catch (error) {
    return refuse("schema", `the schema is no JSON: ${error}`);
  }
}

export function unsupported(path: string, message: string): never {
  return refuse("unsupported", `schema at ${path}: ${message}`);
}

/** That a schema has no keywords beside annotations and `allowed`. */
export function checkKeywords(schema: Schema, path: string, allowed: readonly string[]): void {
  for (const keyword of Object.keys(schema)) {
    if (ANNOTATIONS.includes(keyword) || allowed.includes(keyword)) continue;
    unsupported(path, `the keyword ${JSON.stringify(keyword.slice(0, 60))} is not supported here`);
  }
}

/** The types a schema allows; all when it names none. */
export function readTypes(schema: Schema, path: string): JsonType[] {
  const { type, nullable } = schema;
  const named = type === undefined ? TYPES.filter((each) => each !== "integer") : [type].flat();
  if (nullable !== undefined && typeof nullable !== "boolean") malformed(path, "nullable");
  if (nullable === true) named.push("null");
  const types = TYPES.filter((each) => named.includes(each));
  if (named.length === 0 || named.some((each) => !types.includes(each as JsonType))) {
    malformed(path, "type");
  }
  return types.filter((each) => each !== "integer" || !types.includes("number"));
}

export function malformed(path: string, keyword: string): never {
  return refuse("schema", `schema at ${path}: the value of ${keyword} is malformed`);
}

/** A count such as minItems. */
export function readCount(schema: Schema, path: string, keyword: string): number | undefined {
  const value = schema[keyword];
  if (value === undefined) return undefined;
  if (!Number.isSafeInteger(value) || (value as number) < 0) malformed(path, keyword);
  return value as number;
}

export function readNumber(schema: Schema, path: string, keyword: string): number | undefined {
  const value = schema[keyword];
  if (value === undefined) return undefined;
  if (typeof value !== "number" || !Number.isFinite(value)) malformed(path, keyword);
  return value as number;
}

export function readList(schema: Schema, path: string, keyword: string): readonly unknown[] {
  const value = schema[keyword];
  if (!Array.isArray(value) || value.length === 0) malformed(path, keyword);
  return value as readonly unknown[];
}

/** What a local reference (`#`, `#/$defs/NAME`) points to. */
export function resolveReference(root: unknown, reference: unknown, path: string): unknown {
  if (typeof reference !== "string" || !/^#(\/|$)/.test(reference)) {
    unsupported(path, "$ref must point into the same schema, as #/$defs/NAME does");
  }
  let target: unknown = root;
  for (const step of reference.split("/").slice(1)) {
    const key = decodeStep(step, path).replaceAll("~1", "/").replaceAll("~0", "~");
    const holds = typeof target === "object" && target !== null && Object.hasOwn(target, key);
    if (!holds) return unsupported(path, `$ref ${JSON.stringify(reference)} points to nothing`);
    target = (target as Record<string, unknown>)[key];
  }
  return target;
}

function decodeStep(step: string, path: string): string {
  try {
    return decodeURIComponent(step);
  } catch {
    return malformed(path, "$ref");
  }
}
