/**
 * @file Reading the fields of a JSON object one by one, and then none may be left.
 *
 * Every refusal is an OperationalError that names the file, the field, what it is and what it may
 * be.
 */
import { OperationalError } from "../base/errors.ts";

export class FieldReader {
  readonly #subject: string;
  readonly #fields: ReadonlyMap<string, unknown>;
  readonly #read = new Set<string>();

  /** `subject` names the object in messages: a file, or a file and the path to a nested object. */
  constructor(subject: string, json: unknown) {
    if (typeof json !== "object" || json === null || Array.isArray(json)) {
      throw new OperationalError("config.field", `${subject} must be a JSON object`);
    }
    this.#subject = subject;
    this.#fields = new Map(Object.entries(json));
  }

  integer(field: string, fallback?: number): number {
    return this.#require(
      field,
      this.#take(field, fallback),
      Number.isSafeInteger,
      "a whole number",
    );
  }

  nullableInteger(field: string, fallback: number | null): number | null {
    const value = this.#take(field, fallback);
    if (value === null) return null;
    return this.#require(field, value, Number.isSafeInteger, "a whole number or null");
  }

  integers(field: string): readonly number[] {
    const value = this.#take(field, undefined);
    const valid = (list: unknown): boolean =>
      Array.isArray(list) && list.every(Number.isSafeInteger);
    return this.#require(field, value, valid, "a list of whole numbers");
  }

  texts(field: string): readonly string[] {
    const value = this.#take(field, undefined);
    const valid = (list: unknown): boolean =>
      Array.isArray(list) && list.every((entry) => typeof entry === "string");
    return this.#require(field, value, valid, "a list of texts");
  }

  /** The names of all fields. */
  names(): readonly string[] {
    return [...this.#fields.keys()];
  }

  number(field: string, fallback?: number): number {
    return this.#require(field, this.#take(field, fallback), Number.isFinite, "a number");
  }

  boolean(field: string, fallback: boolean): boolean {
    const isBoolean = (value: unknown): boolean => typeof value === "boolean";
    return this.#require(field, this.#take(field, fallback), isBoolean, "true or false");
  }

  choice<const T extends string>(field: string, allowed: readonly T[], fallback?: T): T {
    const valid = (value: unknown): boolean => allowed.includes(value as T);
    return this.#require(field, this.#take(field, fallback), valid, `one of ${allowed.join(", ")}`);
  }

  /** A nested object, or null if it is null or left out. */
  nested(field: string): FieldReader | null {
    const value = this.#take(field, null);
    return value === null ? null : new FieldReader(`${this.#subject}: ${field}`, value);
  }

  /** A field that may be left out, but must have this value if it is there. */
  fixed(field: string, only: unknown): void {
    const is = (value: unknown): boolean => value === only;
    this.#require(field, this.#take(field, only), is, `${JSON.stringify(only)}, if it is given`);
  }

  /** Fields that are accepted whatever they say. */
  skip(fields: readonly string[]): void {
    for (const field of fields) this.#read.add(field);
  }

  /** Refuse every field that nobody asked for. */
  refuseRest(): void {
    const rest = [...this.#fields.keys()].filter((field) => !this.#read.has(field));
    if (rest.length === 0) return;
    throw new OperationalError(
      "config.field",
      `${this.#subject}: ${rest.join(", ")} ${rest.length === 1 ? "is" : "are"} not supported; ` +
        "remove what does not change the computation",
      { fields: rest },
    );
  }

  #take(field: string, fallback: unknown): unknown {
    this.#read.add(field);
    return this.#fields.has(field) ? this.#fields.get(field) : fallback;
  }

  #require<T>(
    field: string,
    value: unknown,
    valid: (value: unknown) => boolean,
    allowed: string,
  ): T {
    if (valid(value)) return value as T;
    const actual = value === undefined ? "is missing" : `(${JSON.stringify(value)}) is not allowed`;
    throw new OperationalError(
      "config.field",
      `${this.#subject}: ${field} ${actual}; it must be ${allowed}`,
      {
        field,
      },
    );
  }
}
