/**
 * @file Reading a request's JSON: each field by name and kind, and none left over.
 *
 * A field that is null counts as left out. `end` refuses what nobody read, so that a client learns
 * of a misspelt or unsupported field instead of being ignored. Only own properties are seen:
 * `__proto__` in a body is an unknown field like any other.
 */
import { isIntegerIn } from "../base/integers.ts";
import { refuseField, refuseUnsupported } from "./failure.ts";

/** A field's value shortened for a message. */
const SHOWN_CHARACTERS = 40;

export interface Range {
  readonly least: number;
  readonly most: number;
}

export class Fields {
  /** Where this object stands in the request: "" for the whole, else such as `messages[0]`. */
  readonly path: string;
  readonly #values: ReadonlyMap<string, unknown>;
  readonly #read = new Set<string>();
  /** Those of them that may have a value. */
  readonly #known = new Set<string>();

  constructor(value: unknown, path = "") {
    if (typeof value !== "object" || value === null || Array.isArray(value)) {
      refuseField(path === "" ? "the body" : path, `must be an object, not ${show(value)}`);
    }
    this.path = path;
    this.#values = new Map(Object.entries(value));
  }

  /** The name of a field for messages. */
  at(name: string): string {
    return this.path === "" ? name : `${this.path}.${name}`;
  }

  has(name: string): boolean {
    return (this.#values.get(name) ?? null) !== null;
  }

  /** The value as it is; undefined if left out or null. */
  raw(name: string): unknown {
    this.#known.add(name);
    return this.#take(name);
  }

  #take(name: string): unknown {
    this.#read.add(name);
    return this.#values.get(name) ?? undefined;
  }

  text(name: string): string | undefined {
    const value = this.raw(name);
    if (value === undefined || typeof value === "string") return value;
    refuseField(this.at(name), `must be a string, not ${show(value)}`);
  }

  requiredText(name: string): string {
    return this.text(name) ?? refuseField(this.at(name), "is missing; it must be a string");
  }

  flag(name: string): boolean | undefined {
    const value = this.raw(name);
    if (value === undefined || typeof value === "boolean") return value;
    refuseField(this.at(name), `must be true or false, not ${show(value)}`);
  }

  number(name: string, { least, most }: Range): number | undefined {
    const value = this.raw(name);
    if (value === undefined) return undefined;
    if (typeof value === "number" && value >= least && value <= most) return value;
    refuseField(this.at(name), `must be a number from ${least} to ${most}, not ${show(value)}`);
  }

  integer(name: string, { least, most }: Range): number | undefined {
    const value = this.raw(name);
    if (value === undefined) return undefined;
    if (isIntegerIn(value, least, most)) return value;
    const range = `a whole number from ${least} to ${most}`;
    refuseField(this.at(name), `must be ${range}, not ${show(value)}`);
  }

  choice<const C extends string>(name: string, choices: readonly C[]): C | undefined {
    const value = this.raw(name);
    if (value === undefined) return undefined;
    const found = choices.find((choice) => choice === value);
    return (
      found ??
      refuseField(this.at(name), `must be one of ${choices.join(", ")}, not ${show(value)}`)
    );
  }

  list(name: string, lengthMax: number): readonly unknown[] | undefined {
    const value = this.raw(name);
    if (value === undefined) return undefined;
    if (!Array.isArray(value)) refuseField(this.at(name), `must be a list, not ${show(value)}`);
    if (value.length > lengthMax) {
      refuseField(this.at(name), `has ${value.length} entries; at most ${lengthMax} are taken`);
    }
    return value;
  }

  object(name: string): Fields | undefined {
    const value = this.raw(name);
    return value === undefined ? undefined : new Fields(value, this.at(name));
  }

  /** The names of all fields, for an object whose keys are data. */
  names(): readonly string[] {
    return [...this.#values.keys()];
  }

  /** Accept a field that changes nothing as long as it has one of these values; of none, refuse. */
  neutral(name: string, values: readonly unknown[], remedy = "leave it out"): void {
    const value = values.length > 0 ? this.raw(name) : this.#take(name);
    if (value === undefined) return;
    const isNeutral = values.some((other) => JSON.stringify(other) === JSON.stringify(value));
    if (!isNeutral) refuseUnsupported(this.at(name), remedy);
  }

  /** Refuse every field that was not read, and say which are. */
  end(): void {
    for (const [name, value] of this.#values) {
      if (this.#read.has(name) || value === null) continue;
      const known = [...this.#known].sort().join(", ");
      refuseUnsupported(this.at(cut(name)), `leave it out; known here: ${known}`);
    }
  }
}

/** A value for a message, shortened. */
export function show(value: unknown): string {
  if (value === undefined) return "nothing";
  if (typeof value === "string") return JSON.stringify(cut(value));
  if (Array.isArray(value)) return "a list";
  return typeof value === "object" && value !== null ? "an object" : String(value);
}

function cut(text: string): string {
  return text.length > SHOWN_CHARACTERS ? `${text.slice(0, SHOWN_CHARACTERS)}…` : text;
}
