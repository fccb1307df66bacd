/**
 * @file JSON Schema to a network: what OpenAI's structured outputs allow, and some more.
 *
 *     type (one or several), nullable, enum, const, anyOf, oneOf and allOf of one, $ref into the
 *     same schema, recursion included; properties, required, additionalProperties; items,
 *     prefixItems, minItems, maxItems; minLength, maxLength or pattern or format (date, time,
 *     date-time, uuid, ipv4); minimum, maximum and the exclusive ones for integers
 *
 * Every text that the network accepts satisfies the schema. The reverse holds within these limits:
 * properties come in the schema's order, those it does not name after them; an object that has
 * `properties` has others only when `additionalProperties` says so; other properties' names use no
 * escape while they begin like a named one; enum and const values are spelled as JSON.stringify
 * does; so are strings with a pattern or a format. For space and numbers see json-text.ts.
 */
import { jsonSet, UNESCAPED } from "./code-points.ts";
import { addAlternatives } from "./expression-network.ts";
import { INTEGER_MAX, JsonText } from "./json-text.ts";
import { type Network, NetworkBuilder, type Part, refuse } from "./network.ts";
import { parseRegularExpression } from "./regular-expression.ts";
import {
  checkKeywords,
  checkSchemaSize,
  isObject,
  type JsonType,
  KEYWORDS_OF_TYPE,
  malformed,
  readCount,
  readList,
  readNumber,
  readTypes,
  resolveReference,
  type Schema,
  unsupported,
} from "./schema-reader.ts";
import { FORMATS } from "./string-formats.ts";

const NESTING_MAX = 200;
const NAME_CHARACTERS_MAX = 1000;

export function compileJsonSchema(schema: unknown): Network {
  checkSchemaSize(schema);
  const compiler = new SchemaCompiler(schema);
  return compiler.compile();
}

class SchemaCompiler {
  readonly #root: unknown;
  readonly #builder = new NetworkBuilder();
  readonly #text = new JsonText(this.#builder);
  readonly #ruleOfSchema = new Map<unknown, number>();
  #depth = 0;

  constructor(root: unknown) {
    this.#root = root;
  }

  compile(): Network {
    const rule = this.#builder.newRule();
    this.#builder.define(rule, (from) => this.#value(from, this.#root, "#"));
    return this.#builder.finish();
  }

  #value(from: number, schema: unknown, path: string): number {
    if (schema === false) return this.#builder.newState();
    if (schema === true) return this.#text.value(from);
    if (!isObject(schema)) refuse("schema", `schema at ${path}: neither an object nor a boolean`);
    let rule = this.#ruleOfSchema.get(schema);
    if (rule === undefined) {
      rule = this.#builder.newRule();
      this.#ruleOfSchema.set(schema, rule);
      if (++this.#depth > NESTING_MAX) {
        refuse("schema", `schema at ${path.slice(0, 200)}: nested more than ${NESTING_MAX} deep`);
      }
      this.#builder.define(rule, (start) => this.#content(start, schema, path));
      this.#depth--;
    }
    return this.#builder.call(from, rule);
  }

  #content(from: number, schema: Schema, path: string): number {
    if (Object.hasOwn(schema, "$ref")) {
      checkKeywords(schema, path, ["$ref"]);
      const target = resolveReference(this.#root, schema["$ref"], path);
      return this.#value(from, target, String(schema["$ref"]));
    }
    if (Object.hasOwn(schema, "const")) {
      checkKeywords(schema, path, ["const", "type"]);
      return this.#literals(from, schema, [schema["const"]], path);
    }
    if (Object.hasOwn(schema, "enum")) {
      checkKeywords(schema, path, ["enum", "type", "nullable"]);
      return this.#literals(from, schema, readList(schema, path, "enum"), path);
    }
    for (const keyword of ["anyOf", "oneOf", "allOf"]) {
      if (!Object.hasOwn(schema, keyword)) continue;
      checkKeywords(schema, path, [keyword]);
      const options = readList(schema, path, keyword);
      if (keyword !== "anyOf" && options.length > 1) {
        const hint = keyword === "oneOf" ? "; write anyOf" : "";
        unsupported(path, `${keyword} of several schemas is not supported${hint}`);
      }
      return this.#builder.choice(
        from,
        options.map(
          (option, i) => (start) => this.#value(start, option, `${path}/${keyword}/${i}`),
        ),
      );
    }
    return this.#typed(from, schema, path);
  }

  #typed(from: number, schema: Schema, path: string): number {
    checkKeywords(schema, path, ["type", "nullable", ...Object.values(KEYWORDS_OF_TYPE).flat()]);
    const types = readTypes(schema, path);
    const isFree = Object.values(KEYWORDS_OF_TYPE)
      .flat()
      .every((word) => !Object.hasOwn(schema, word));
    if (isFree && schema["type"] === undefined) return this.#text.value(from);
    return this.#builder.choice(
      from,
      types.map((type) => (start) => this.#ofType(start, type, schema, path)),
    );
  }

  #ofType(from: number, type: JsonType, schema: Schema, path: string): number {
    switch (type) {
      case "object":
        return this.#object(from, schema, path);
      case "array":
        return this.#array(from, schema, path);
      case "string":
        return this.#string(from, schema, path);
      case "integer":
        return this.#integer(from, schema, path);
      case "number":
        for (const keyword of KEYWORDS_OF_TYPE["integer"]!) {
          if (!Object.hasOwn(schema, keyword)) continue;
          unsupported(path, `${keyword} is supported for integers only`);
        }
        return this.#text.number(from);
      case "boolean":
        return this.#words(from, ["true", "false"]);
      case "null":
        return this.#words(from, ["null"]);
    }
  }

  #words(from: number, words: readonly string[]): number {
    return this.#builder.choice(
      from,
      words.map((word) => (start) => this.#builder.text(start, word)),
    );
  }

  /** The values among `values` that the schema's type allows. */
  #literals(from: number, schema: Schema, values: readonly unknown[], path: string): number {
    const types = readTypes(schema, path);
    const allowed = values.filter((value) => types.some((type) => isOfType(value, type)));
    const texts = allowed.map((value) => JSON.stringify(value));
    return this.#words(from, [...new Set(texts)]);
  }

  #integer(from: number, schema: Schema, path: string): number {
    const bound = (keyword: string) => readNumber(schema, path, keyword);
    const least = Math.max(
      Math.ceil(bound("minimum") ?? -INTEGER_MAX),
      Math.floor(bound("exclusiveMinimum") ?? -INTEGER_MAX - 1) + 1,
      -INTEGER_MAX,
    );
    const most = Math.min(
      Math.floor(bound("maximum") ?? INTEGER_MAX),
      Math.ceil(bound("exclusiveMaximum") ?? INTEGER_MAX + 1) - 1,
      INTEGER_MAX,
    );
    // An empty range is a rule without an end.
    return this.#text.integer(from, least, most);
  }

  #string(from: number, schema: Schema, path: string): number {
    const { pattern, format } = schema;
    const least = readCount(schema, path, "minLength") ?? 0;
    const most = readCount(schema, path, "maxLength") ?? Number.POSITIVE_INFINITY;
    const isSized = least > 0 || most < Number.POSITIVE_INFINITY;
    if (Number(isSized) + Number(pattern !== undefined) + Number(format !== undefined) > 1) {
      unsupported(path, "only one of length, pattern and format is supported for a string");
    }
    const quoted = (part: Part): number =>
      this.#builder.text(part(this.#builder.text(from, '"')), '"');
    if (pattern !== undefined) {
      if (typeof pattern !== "string") malformed(path, "pattern");
      return quoted((start) => this.#matching(start, pattern));
    }
    if (format !== undefined) {
      const form = typeof format === "string" ? FORMATS.get(format) : undefined;
      if (form === undefined) {
        unsupported(path, `format ${JSON.stringify(format)} is not one of ${[...FORMATS.keys()]}`);
      }
      return quoted((start) => this.#matching(start, form));
    }
    if (!isSized) return this.#text.string(from);
    if (least > most) return this.#builder.newState();
    return quoted((start) =>
      this.#builder.repeat(start, least, most, (at) => this.#text.character(at)),
    );
  }

  /** The inside of a string that matches somewhere, unless the pattern is anchored. */
  #matching(from: number, pattern: string): number {
    const alternatives = parseRegularExpression(pattern);
    return addAlternatives(this.#builder, jsonSet(this.#builder), {
      from,
      alternatives,
      isSearch: true,
    });
  }

  #array(from: number, schema: Schema, path: string): number {
    const builder = this.#builder;
    const given = schema["prefixItems"];
    const prefix = given === undefined ? [] : readList(schema, path, "prefixItems");
    const items = schema["items"] ?? true;
    const least = readCount(schema, path, "minItems") ?? 0;
    const allowed = readCount(schema, path, "maxItems") ?? Number.POSITIVE_INFINITY;
    const most = items === false ? Math.min(allowed, prefix.length) : allowed;
    const item = (start: number, index: number): number => {
      const inPrefix = index < prefix.length;
      const place = inPrefix ? `${path}/prefixItems/${index}` : `${path}/items`;
      return this.#text.space(this.#value(start, inPrefix ? prefix[index] : items, place));
    };
    const end = builder.newState();
    let state = this.#text.mark(from, "[");
    if (least === 0) builder.skip(state, end);
    const numSeparate = Math.min(most, Math.max(least, prefix.length, 1));
    for (let index = 0; index < numSeparate; index++) {
      state = item(index === 0 ? state : this.#text.mark(state, ","), index);
      if (index + 1 >= least) builder.skip(state, end);
    }
    if (numSeparate > 0 && most > numSeparate) {
      const more: Part = (start) => item(this.#text.mark(start, ","), numSeparate);
      builder.skip(builder.repeat(state, 0, most - numSeparate, more), end);
    }
    return builder.text(end, "]");
  }

  #object(from: number, schema: Schema, path: string): number {
    const properties = schema["properties"] ?? {};
    if (!isObject(properties)) malformed(path, "properties");
    const required = readRequired(schema, path);
    const given = schema["additionalProperties"];
    const isOpen = !Object.hasOwn(schema, "properties") && required.length === 0;
    const additional = given ?? isOpen;
    const builder = this.#builder;
    const names = [...new Set([...Object.keys(properties), ...required])];
    if (names.some((name) => name.length > NAME_CHARACTERS_MAX)) {
      refuse("schema", `schema at ${path}: a name has more than ${NAME_CHARACTERS_MAX} characters`);
    }
    // Nothing written yet; something written, which a comma has to follow.
    let none = this.#text.mark(from, "{");
    let some = builder.newState();
    for (const name of names) {
      const isNamed = Object.hasOwn(properties, name);
      // A required name without a schema is one of the additional ones.
      const value = isNamed ? properties[name] : (given ?? true);
      const place = isNamed ? `${path}/properties/${name}` : `${path}/additionalProperties`;
      const key = this.#keyStart(none, some);
      const written = this.#property(builder.text(key, JSON.stringify(name)), value, place);
      const [nextNone, nextSome] = [builder.newState(), builder.newState()];
      builder.skip(written, nextSome);
      if (!required.includes(name)) {
        builder.skip(none, nextNone);
        builder.skip(some, nextSome);
      }
      [none, some] = [nextNone, nextSome];
    }
    const end = builder.newState();
    builder.skip(none, end);
    builder.skip(some, end);
    if (additional !== false) {
      const key = this.#otherKey(this.#keyStart(none, some), names);
      const written = this.#property(key, additional, `${path}/additionalProperties`);
      builder.skip(written, some);
    }
    return builder.text(end, "}");
  }

  /** Where a key stands: at once when nothing was written, else after a comma. */
  #keyStart(none: number, some: number): number {
    const start = this.#builder.newState();
    this.#builder.skip(none, start);
    this.#builder.skip(this.#text.mark(some, ","), start);
    return start;
  }

  #property(key: number, schema: unknown, path: string): number {
    const colon = this.#text.mark(this.#text.space(key), ":");
    return this.#text.space(this.#value(colon, schema, path));
  }

  /** A key that is none of `names`. */
  #otherKey(from: number, names: readonly string[]): number {
    const builder = this.#builder;
    const end = builder.newState();
    const rest = builder.newState();
    const closing = builder.repeat(rest, 0, Number.POSITIVE_INFINITY, (at) =>
      this.#text.character(at),
    );
    builder.skip(builder.text(closing, '"'), end);
    const walk = (state: number, tails: readonly (readonly string[])[]): void => {
      const heads = new Set(tails.flatMap(([head]) => (head === undefined ? [] : [head])));
      const points = [...heads].map((head) => head.codePointAt(0)!);
      builder.skip(this.#text.writeSet(state, without(points)), rest);
      // What begins like a name may end where no name does.
      if (tails.every((tail) => tail.length > 0)) builder.skip(builder.text(state, '"'), end);
      for (const head of heads) {
        const code = head.codePointAt(0)!;
        const next = this.#text.writeSet(state, [[code, code]]);
        walk(
          next,
          tails.filter((tail) => tail[0] === head).map((tail) => tail.slice(1)),
        );
      }
    };
    walk(
      builder.text(from, '"'),
      names.map((name) => [...name]),
    );
    return end;
  }
}

/** The unescaped characters but some. */
function without(points: readonly number[]): (readonly [number, number])[] {
  const sorted = [...points].sort((a, b) => a - b);
  return UNESCAPED.flatMap(([low, high]) => {
    const parts: [number, number][] = [];
    let start = low;
    for (const code of sorted) {
      if (code < start || code > high) continue;
      if (code > start) parts.push([start, code - 1]);
      start = code + 1;
    }
    if (start <= high) parts.push([start, high]);
    return parts;
  });
}

function readRequired(schema: Schema, path: string): readonly string[] {
  const required = schema["required"] ?? [];
  const isList = Array.isArray(required) && required.every((name) => typeof name === "string");
  if (!isList) malformed(path, "required");
  return required as readonly string[];
}

function isOfType(value: unknown, type: JsonType): boolean {
  if (type === "null") return value === null;
  if (type === "array") return Array.isArray(value);
  if (type === "object") return isObject(value);
  if (type === "integer") return Number.isInteger(value);
  return typeof value === type;
}
