/**
 * @file The parts of JSON texts: strings, numbers, any value, and the space between tokens.
 *
 * Where JSON allows space these texts may have none, one blank, or a line feed and up to 24 blanks
 * or tabs: enough for every usual layout, and no room to go on for ever. Numbers have up to 21
 * digits before the point and 25 behind it, or one digit before it and an exponent up to 307: what
 * JSON.stringify writes, and always finite. Integers have up to 15 digits.
 * Strings are unbounded and may escape every character; surrogates come in pairs.
 */
import { type CodePointRange, jsonSet, plainSet, UNESCAPED, type WriteSet } from "./code-points.ts";
import type { NetworkBuilder, Part } from "./network.ts";

const INDENTATION_MAX = 24;
const WHOLE_DIGITS_MAX = 21;
const FRACTION_DIGITS_MAX = 25;
/** The largest integer of 15 digits. */
export const INTEGER_MAX = 999_999_999_999_999;

const HEX: readonly CodePointRange[] = hexDigits("0123456789abcdef");

/** The rules that JSON texts share; made when first asked for. */
export class JsonText {
  readonly builder: NetworkBuilder;
  readonly writeSet: WriteSet;
  readonly #plain: WriteSet;
  readonly #rules = new Map<string, number>();

  constructor(builder: NetworkBuilder) {
    this.builder = builder;
    this.writeSet = jsonSet(builder);
    this.#plain = plainSet(builder);
  }

  /** A call of the shared rule of that name. */
  #shared(from: number, name: string, part: Part): number {
    let rule = this.#rules.get(name);
    if (rule === undefined) {
      rule = this.builder.newRule();
      this.#rules.set(name, rule);
      this.builder.define(rule, part);
    }
    return this.builder.call(from, rule);
  }

  space(from: number): number {
    const { builder } = this;
    const indented: Part = (state) =>
      builder.repeat(builder.text(state, "\n"), 0, INDENTATION_MAX, (start) =>
        this.#plain(start, [
          [9, 9],
          [32, 32],
        ]),
      );
    return this.#shared(from, "space", (state) =>
      builder.choice(state, [(start) => start, (start) => builder.text(start, " "), indented]),
    );
  }

  /** A punctuation mark and space after it. */
  mark(from: number, mark: string): number {
    return this.space(this.builder.text(from, mark));
  }

  string(from: number): number {
    const { builder } = this;
    return this.#shared(from, "string", (state) =>
      builder.text(
        builder.repeat(builder.text(state, '"'), 0, Number.POSITIVE_INFINITY, (start) =>
          this.character(start),
        ),
        '"',
      ),
    );
  }

  /** One character of a string, as itself or escaped. */
  character(from: number): number {
    const { builder } = this;
    return builder.choice(from, [
      (state) => this.#plain(state, UNESCAPED),
      (state) => this.#escape(state),
    ]);
  }

  #escape(from: number): number {
    const { builder } = this;
    const digits = (state: number, sets: readonly (readonly CodePointRange[])[]): number =>
      sets.reduce((at, set) => this.#plain(at, set), state);
    const notD = hexDigits("0123456789abcef");
    const low = hexDigits("01234567");
    const high = hexDigits("89ab");
    const upper = hexDigits("cdef");
    return builder.choice(builder.text(from, "\\"), [
      (state) => this.#plain(state, [...'"\\/bfnrt'].map(pointOf)),
      (state) => digits(builder.text(state, "u"), [notD, HEX, HEX, HEX]),
      (state) => digits(builder.text(state, "u"), [hexDigits("d"), low, HEX, HEX]),
      (state) => {
        const first = digits(builder.text(state, "u"), [hexDigits("d"), high, HEX, HEX]);
        return digits(builder.text(first, "\\u"), [hexDigits("d"), upper, HEX, HEX]);
      },
    ]);
  }

  digits(from: number, least: number, most: number): number {
    return this.builder.repeat(from, least, most, (state) => this.#plain(state, [[48, 57]]));
  }

  number(from: number): number {
    const { builder } = this;
    const point: Part = (state) =>
      builder.repeat(state, 0, 1, (start) =>
        this.digits(builder.text(start, "."), 1, FRACTION_DIGITS_MAX),
      );
    return this.#shared(from, "number", (state) => {
      const signed = builder.repeat(state, 0, 1, (start) => builder.text(start, "-"));
      return builder.choice(signed, [
        (start) => point(builder.text(start, "0")),
        (start) => point(this.digits(this.#plain(start, [[49, 57]]), 0, WHOLE_DIGITS_MAX - 1)),
        (start) => this.#exponent(point(this.digits(start, 1, 1))),
      ]);
    });
  }

  #exponent(from: number): number {
    const { builder } = this;
    const letter = this.#plain(from, [pointOf("e"), pointOf("E")]);
    const signs = [pointOf("+"), pointOf("-")];
    const signed = builder.repeat(letter, 0, 1, (state) => this.#plain(state, signs));
    return builder.choice(signed, [
      (state) => this.digits(state, 1, 2),
      (state) => this.digits(this.#plain(state, [[49, 50]]), 2, 2),
      (state) => this.#plain(builder.text(state, "30"), [[48, 55]]),
    ]);
  }

  /** A whole number from `least` to `most`, both of at most 15 digits. */
  integer(from: number, least: number, most: number): number {
    return this.#shared(from, `integer ${least} ${most}`, (state) => {
      const parts: Part[] = [];
      const below = Math.min(most, -1);
      const above = Math.max(least, 0);
      if (least <= below) {
        parts.push((start) => this.#natural(this.builder.text(start, "-"), -below, -least));
      }
      if (above <= most) parts.push((start) => this.#natural(start, above, most));
      return this.builder.choice(state, parts);
    });
  }

  /** Decimal numbers from `least` to `most`, in runs that share all but a free end. */
  #natural(from: number, least: number, most: number): number {
    const parts: Part[] = [];
    for (let start = least; start <= most; ) {
      const isPower = start > 0 && Number.isInteger(Math.log10(start));
      if (isPower && 10 * start - 1 <= most) {
        const numAfter = String(start).length - 1;
        parts.push((state) => this.digits(this.#plain(state, [[49, 57]]), numAfter, numAfter));
        start *= 10;
        continue;
      }
      let numFree = 0;
      while (
        start % 10 ** (numFree + 1) === 0 &&
        start > 0 &&
        start + 10 ** (numFree + 1) - 1 <= most
      ) {
        numFree++;
      }
      const unit = 10 ** numFree;
      const fixed = String(Math.floor(start / unit));
      parts.push((state) => this.digits(this.builder.text(state, fixed), numFree, numFree));
      start += unit;
    }
    return this.builder.choice(from, parts);
  }

  value(from: number): number {
    const { builder } = this;
    return this.#shared(from, "value", (state) =>
      builder.choice(state, [
        (start) => this.string(start),
        (start) => this.number(start),
        (start) => this.object(start),
        (start) => this.array(start),
        ...["true", "false", "null"].map((word) => (start: number) => builder.text(start, word)),
      ]),
    );
  }

  object(from: number): number {
    return this.#shared(from, "object", (state) =>
      this.#list(state, "{}", (start) => {
        const key = this.space(this.string(start));
        return this.value(this.mark(key, ":"));
      }),
    );
  }

  array(from: number): number {
    return this.#shared(from, "array", (state) =>
      this.#list(state, "[]", (start) => this.value(start)),
    );
  }

  #list(from: number, brackets: string, item: Part): number {
    const { builder } = this;
    const first = this.mark(from, brackets[0]!);
    const filled: Part = (state) => {
      const one = this.space(item(state));
      return builder.repeat(one, 0, Number.POSITIVE_INFINITY, (start) =>
        this.space(item(this.mark(start, ","))),
      );
    };
    return builder.text(builder.choice(first, [(state) => state, filled]), brackets[1]!);
  }
}

function pointOf(character: string): CodePointRange {
  const code = character.codePointAt(0)!;
  return [code, code];
}

/** Hexadecimal digits in both cases. */
function hexDigits(digits: string): readonly CodePointRange[] {
  return [...digits, ...digits.toUpperCase()].map(pointOf);
}
