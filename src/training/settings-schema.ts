/**
 * @file Checking settings against a schema that has the shape of the settings themselves.
 *
 * A schema is an object of leaves and of further schemas; its type follows from the settings' type,
 * so a field without a leaf does not compile. A user's object may leave fields out, never add any:
 * an unknown name is refused with the nearest known one.
 */
import { OperationalError } from "../base/errors.ts";

/** Reads one value, or says what is allowed instead. */
export interface Leaf<T> {
  readonly allowed: string;
  /** The value, or undefined if it is not allowed; `null` is a value. */
  read(value: unknown): T | undefined;
}

type Primitive = string | number | boolean | null | readonly unknown[];

/** A leaf for each plain field; for each object a schema, or a leaf that reads it as one value. */
export type Schema<T> = {
  readonly [K in keyof T]: T[K] extends Primitive
    ? Leaf<T[K]>
    : null extends T[K]
      ? Leaf<T[K]>
      : Leaf<T[K]> | Schema<T[K]>;
};

export function integer(least: number, most: number = Number.MAX_SAFE_INTEGER): Leaf<number> {
  const isAllowed = (value: unknown): value is number =>
    Number.isSafeInteger(value) && (value as number) >= least && (value as number) <= most;
  return {
    allowed: `a whole number ${range(least, most)}`,
    read: (value) => (isAllowed(value) ? value : undefined),
  };
}

export function real(least: number, most: number = Number.MAX_VALUE): Leaf<number> {
  return {
    allowed: `a number ${range(least, most)}`,
    read: (value) =>
      typeof value === "number" && value >= least && value <= most ? value : undefined,
  };
}

function range(least: number, most: number): string {
  return most >= Number.MAX_SAFE_INTEGER ? `>= ${least}` : `from ${least} to ${most}`;
}

export const finite: Leaf<number> = {
  allowed: "a finite number",
  read: (value) => (typeof value === "number" && Number.isFinite(value) ? value : undefined),
};

export function choice<const T extends string>(choices: readonly T[]): Leaf<T> {
  return {
    allowed: choices.join(", "),
    read: (value) => choices.find((name) => name === value),
  };
}

export const yesOrNo: Leaf<boolean> = {
  allowed: "true or false",
  read: (value) => (typeof value === "boolean" ? value : undefined),
};

/** A short text, such as a name. */
export const text: Leaf<string> = {
  allowed: "a text of 1 to 80 characters",
  read: (value) =>
    typeof value === "string" && value.length > 0 && value.length <= 80 ? value : undefined,
};

export const texts: Leaf<readonly string[]> = {
  allowed: "a list of texts",
  read: (value) =>
    Array.isArray(value) && value.every((item) => typeof item === "string") ? value : undefined,
};

export function orNull<T>(leaf: Leaf<T>): Leaf<T | null> {
  return {
    allowed: `${leaf.allowed}, or null`,
    read: (value) => (value === null ? null : leaf.read(value)),
  };
}

/** The first of `leaves` that can read the value does. */
export function oneOf<T>(leaves: readonly Leaf<T>[]): Leaf<T> {
  return {
    allowed: leaves.map(({ allowed }) => allowed).join(", or "),
    read: (value) => leaves.map((leaf) => leaf.read(value)).find((read) => read !== undefined),
  };
}

export function listOf<T>(leaf: Leaf<T>): Leaf<readonly T[]> {
  return {
    allowed: `a list, each ${leaf.allowed}`,
    read: (value) => {
      if (!Array.isArray(value)) return undefined;
      const items = value.map((item) => leaf.read(item));
      return items.some((item) => item === undefined) ? undefined : (items as T[]);
    },
  };
}

/** An object read as a whole: all of its fields are required. */
export function whole<T extends object>(schema: Schema<T>): Leaf<T> {
  const entries = Object.entries(schema) as [string, Leaf<unknown>][];
  return {
    allowed: `an object with ${Object.keys(schema).join(", ")}`,
    read: (value) => {
      if (!isRecord(value) || Object.keys(value).length !== entries.length) return undefined;
      const read = entries.map(([key, leaf]) => [key, leaf.read(value[key])] as const);
      return read.some(([, field]) => field === undefined)
        ? undefined
        : (Object.fromEntries(read) as T);
    },
  };
}

interface Node {
  readonly [key: string]: Node | Leaf<unknown>;
}

function isLeaf(node: Node | Leaf<unknown>): node is Leaf<unknown> {
  return typeof node["read"] === "function";
}

function isRecord(value: unknown): value is Readonly<Record<string, unknown>> {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

/**
 * `base` with the fields of `changes` in place of its own, each checked. `origin` says where they
 * come from.
 */
export function overlay<T extends object>(
  schema: Schema<T>,
  base: T,
  changes: unknown,
  origin: string,
): T {
  return overlayNode(schema as Node, base as Record<string, unknown>, changes, origin, "") as T;
}

function overlayNode(
  schema: Node,
  base: Readonly<Record<string, unknown>>,
  changes: unknown,
  origin: string,
  prefix: string,
): Record<string, unknown> {
  if (!isRecord(changes)) {
    const subject = prefix === "" ? "the settings" : prefix.slice(0, -1);
    throw refusal(origin, subject, changes, "an object");
  }
  const result: Record<string, unknown> = { ...base };
  for (const [key, value] of Object.entries(changes)) {
    const node = Object.hasOwn(schema, key) ? schema[key] : undefined;
    if (node === undefined) throw unknownName(origin, prefix + key, leafNames(schema, prefix));
    const held = base[key] as Readonly<Record<string, unknown>>;
    result[key] = isLeaf(node)
      ? readLeaf(node, value, origin, prefix + key)
      : overlayNode(node, held, value, origin, `${prefix}${key}.`);
  }
  return result;
}

/**
 * A value that a program wrote and that must have exactly the fields of the schema; anything else
 * is thrown as what `refuse` makes of the problem.
 */
export function readExactly<T extends object>(
  schema: Schema<T>,
  value: unknown,
  refuse: (problem: string) => OperationalError,
): T {
  return readExactNode(schema as Node, value, refuse, "") as T;
}

function readExactNode(
  schema: Node,
  value: unknown,
  refuse: (problem: string) => OperationalError,
  prefix: string,
): Record<string, unknown> {
  const held = (subject: string, actual: unknown, allowed: string): OperationalError =>
    refuse(
      actual === undefined
        ? `${subject} is missing; it must be ${allowed}`
        : `${subject} (${abridged(actual)}) must be ${allowed}`,
    );
  if (!isRecord(value)) {
    throw held(prefix === "" ? "the content" : prefix.slice(0, -1), value, "an object");
  }
  const other = Object.keys(value).find((key) => !Object.hasOwn(schema, key));
  if (other !== undefined) throw refuse(`the field ${prefix}${other} is not known`);
  const entries = Object.entries(schema).map(([key, node]) => {
    const field = Object.hasOwn(value, key) ? value[key] : undefined;
    if (!isLeaf(node)) return [key, readExactNode(node, field, refuse, `${prefix}${key}.`)];
    const read = node.read(field);
    if (read === undefined) throw held(prefix + key, field, node.allowed);
    return [key, read];
  });
  return Object.fromEntries(entries) as Record<string, unknown>;
}

/** A value for a message. */
function abridged(value: unknown): string {
  const text = JSON.stringify(value);
  return text.length <= 80 ? text : `${text.slice(0, 80)}…`;
}

function readLeaf(leaf: Leaf<unknown>, value: unknown, origin: string, name: string): unknown {
  const read = leaf.read(value);
  if (read === undefined) throw refusal(origin, name, value, leaf.allowed);
  return read;
}

function refusal(origin: string, name: string, value: unknown, allowed: string): OperationalError {
  return new OperationalError(
    "config.value",
    `${origin}: ${name} (${JSON.stringify(value)}) must be ${allowed}`,
    { name, value },
  );
}

/** "a.b.c=3" as the object { a: { b: { c: 3 } } }; a value that is not JSON is text. */
export function parseAssignment(assignment: string): Readonly<Record<string, unknown>> {
  const equals = assignment.indexOf("=");
  if (equals <= 0) {
    throw new OperationalError(
      "usage.set",
      `--set ${assignment} must be KEY=VALUE, such as learningRate.peak=0.002`,
    );
  }
  const value = parseValue(assignment.slice(equals + 1));
  return assignment
    .slice(0, equals)
    .split(".")
    .reduceRight<unknown>((inner, key) => ({ [key]: inner }), value) as Record<string, unknown>;
}

function parseValue(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return text;
  }
}

/** Dotted names of all leaves below a schema. */
function leafNames(schema: Node, prefix: string): string[] {
  return Object.entries(schema).flatMap(([key, node]) =>
    isLeaf(node) ? [prefix + key] : [prefix + key, ...leafNames(node, `${prefix}${key}.`)],
  );
}

function unknownName(origin: string, name: string, known: readonly string[]): OperationalError {
  const ranked = known
    .map((candidate) => ({ candidate, distance: editDistance(name, candidate) }))
    .sort((left, right) => left.distance - right.distance);
  const best = ranked[0];
  const isNear = best !== undefined && best.distance <= Math.max(2, name.length / 3);
  const prefix = name.slice(0, name.lastIndexOf(".") + 1);
  const siblings = known.filter((other) => !other.slice(prefix.length).includes("."));
  const remedy = isNear ? `did you mean ${best.candidate}?` : `known: ${siblings.join(", ")}`;
  return new OperationalError(
    "config.unknown",
    `${origin}: there is no setting ${name}; ${remedy}`,
    {
      name,
    },
  );
}

/** Insertions, deletions and replacements that turn one word into the other. */
function editDistance(from: string, to: string): number {
  let last = Array.from({ length: to.length + 1 }, (_, column) => column);
  for (let row = 1; row <= from.length; row++) {
    const current = [row];
    for (let column = 1; column <= to.length; column++) {
      const replaced = last[column - 1]! + (from[row - 1] === to[column - 1] ? 0 : 1);
      current.push(Math.min(last[column]! + 1, current[column - 1]! + 1, replaced));
    }
    last = current;
  }
  return last[to.length]!;
}
