/**
 * @file Regular expressions, read as ECMAScript reads them with the `u` flag, and only those that a
 * finite automaton can follow in one pass.
 *
 * Characters, classes, `.`, `\d \w \s` and their opposites, escapes, groups, `|`, `* + ? {m,n}` and
 * their lazy forms (which match the same texts), and `^ $` at the ends of an alternative of the
 * whole. Refused by name: look-around, back-references, word boundaries, `\p{…}`,
 * anchors elsewhere.
 */
import { OperationalError } from "../../base/errors.ts";
import { type CodePointRange, complement } from "./code-points.ts";

const PATTERN_CHARACTERS_MAX = 10_000;
const NESTING_MAX = 100;

export type Expression =
  | { readonly kind: "set"; readonly ranges: readonly CodePointRange[] }
  | { readonly kind: "sequence"; readonly parts: readonly Expression[] }
  | { readonly kind: "choice"; readonly options: readonly Expression[] }
  | {
      readonly kind: "repeat";
      readonly part: Expression;
      readonly least: number;
      readonly most: number;
    };

/** One alternative of the whole pattern. */
export interface Alternative {
  readonly expression: Expression;
  readonly fromStart: boolean;
  readonly toEnd: boolean;
}

const DIGIT: readonly CodePointRange[] = [[0x30, 0x39]];
const WORD: readonly CodePointRange[] = [
  [0x30, 0x39],
  [0x41, 0x5a],
  [0x5f, 0x5f],
  [0x61, 0x7a],
];
const SPACE: readonly CodePointRange[] = [
  [0x09, 0x0d],
  [0x20, 0x20],
  [0xa0, 0xa0],
  [0x1680, 0x1680],
  [0x2000, 0x200a],
  [0x2028, 0x2029],
  [0x202f, 0x202f],
  [0x205f, 0x205f],
  [0x3000, 0x3000],
  [0xfeff, 0xfeff],
];
const LINE_END: readonly CodePointRange[] = [
  [0x0a, 0x0a],
  [0x0d, 0x0d],
  [0x2028, 0x2029],
];
const CLASS_ESCAPES: Readonly<Record<string, readonly CodePointRange[]>> = {
  d: DIGIT,
  D: complement(DIGIT),
  w: WORD,
  W: complement(WORD),
  s: SPACE,
  S: complement(SPACE),
};
const CONTROL_ESCAPES: Readonly<Record<string, number>> = { t: 9, n: 10, v: 11, f: 12, r: 13 };

export function parseRegularExpression(pattern: string): Alternative[] {
  if (pattern.length > PATTERN_CHARACTERS_MAX) {
    const message = `the pattern has ${pattern.length} characters; at most 10000`;
    throw new OperationalError("constraint.pattern", message);
  }
  return new Parser(pattern).parse();
}

class Parser {
  readonly #pattern: string;
  readonly #characters: readonly string[];
  #at = 0;

  constructor(pattern: string) {
    this.#pattern = pattern;
    this.#characters = [...pattern];
  }

  parse(): Alternative[] {
    const alternatives: Alternative[] = [];
    do {
      const fromStart = this.#take("^");
      const expression = this.#sequence(0);
      alternatives.push({ expression, fromStart, toEnd: this.#take("$") });
    } while (this.#take("|"));
    if (this.#next !== undefined) this.#refuse(`${this.#next} is not expected`);
    return alternatives;
  }

  get #next(): string | undefined {
    return this.#characters[this.#at];
  }

  #take(text: string): boolean {
    const isNext = this.#characters.slice(this.#at, this.#at + text.length).join("") === text;
    if (isNext) this.#at += text.length;
    return isNext;
  }

  #refuse(problem: string): never {
    const shown = JSON.stringify(this.#pattern.slice(0, 80));
    const message = `pattern ${shown}: ${problem} (character ${this.#at})`;
    throw new OperationalError("constraint.pattern", message, { at: this.#at });
  }

  #choice(depth: number): Expression {
    if (depth > NESTING_MAX) this.#refuse(`groups are nested more than ${NESTING_MAX} deep`);
    const options: Expression[] = [];
    do options.push(this.#sequence(depth));
    while (this.#take("|"));
    return options.length === 1 ? options[0]! : { kind: "choice", options };
  }

  #sequence(depth: number): Expression {
    const parts: Expression[] = [];
    for (let next = this.#next; next !== undefined; next = this.#next) {
      if (next === "|" || next === ")") break;
      if (next === "$" && depth === 0 && [undefined, "|"].includes(this.#characters[this.#at + 1]))
        break;
      parts.push(this.#quantified(this.#atom(depth)));
    }
    return parts.length === 1 ? parts[0]! : { kind: "sequence", parts };
  }

  #atom(depth: number): Expression {
    const character = this.#characters[this.#at++]!;
    if (character === "(") return this.#group(depth);
    if (character === "[") return { kind: "set", ranges: this.#set() };
    if (character === ".") return { kind: "set", ranges: complement(LINE_END) };
    if (character === "\\") return { kind: "set", ranges: this.#escape() };
    if (character === "^" || character === "$") {
      this.#refuse(`${character} is supported at the ends of the whole pattern only`);
    }
    if ("*+?{}]".includes(character)) this.#refuse(`${character} stands where it means nothing`);
    return { kind: "set", ranges: [point(character)] };
  }

  #group(depth: number): Expression {
    if (this.#take("?")) {
      const isNamed = this.#next === "<" && !["=", "!"].includes(this.#characters[this.#at + 1]!);
      if (isNamed) {
        while (this.#at < this.#characters.length && this.#characters[this.#at] !== ">") this.#at++;
        if (!this.#take(">")) this.#refuse("a group's name does not end");
      } else if (!this.#take(":")) this.#refuse("look-around and flags are not supported");
    }
    const inside = this.#choice(depth + 1);
    if (!this.#take(")")) this.#refuse("a group does not end");
    return inside;
  }

  #quantified(part: Expression): Expression {
    const bounds = this.#bounds();
    if (bounds === null) return part;
    this.#take("?");
    const [least, most] = bounds;
    if (most < least) this.#refuse(`{${least},${most}} is the wrong way round`);
    return { kind: "repeat", part, least, most };
  }

  #bounds(): readonly [number, number] | null {
    if (this.#take("*")) return [0, Number.POSITIVE_INFINITY];
    if (this.#take("+")) return [1, Number.POSITIVE_INFINITY];
    if (this.#take("?")) return [0, 1];
    if (!this.#take("{")) return null;
    const least = this.#number();
    if (!this.#take(",")) {
      if (!this.#take("}")) this.#refuse("a repetition does not end");
      return [least, least];
    }
    const most = this.#next === "}" ? Number.POSITIVE_INFINITY : this.#number();
    if (!this.#take("}")) this.#refuse("a repetition does not end");
    return [least, most];
  }

  #number(): number {
    let digits = "";
    for (let next = this.#next; next !== undefined && /^\d$/.test(next); next = this.#next) {
      digits += next;
      this.#at++;
    }
    if (digits === "") this.#refuse("a repetition lacks its number");
    return Number(digits);
  }

  #set(): readonly CodePointRange[] {
    const isNegated = this.#take("^");
    const ranges: CodePointRange[] = [];
    while (!this.#take("]")) {
      if (this.#next === undefined) this.#refuse("a class of characters does not end");
      const low = this.#setMember();
      const isRange = this.#next === "-" && this.#characters[this.#at + 1] !== "]";
      if (!isRange) {
        ranges.push(...low);
        continue;
      }
      this.#at++;
      if (this.#next === undefined) this.#refuse("a class of characters does not end");
      const high = this.#setMember();
      const from = singlePoint(low);
      const to = singlePoint(high);
      if (from === null || to === null || from > to) this.#refuse("a range's ends are no range");
      ranges.push([from, to]);
    }
    return isNegated ? complement(ranges) : ranges;
  }

  #setMember(): readonly CodePointRange[] {
    const character = this.#characters[this.#at++]!;
    if (character !== "\\") return [point(character)];
    if (this.#take("b")) return [[8, 8]];
    if (this.#take("-")) return [point("-")];
    return this.#escape();
  }

  #escape(): readonly CodePointRange[] {
    const character = this.#characters[this.#at++];
    if (character === undefined) this.#refuse("a backslash ends the pattern");
    const set = Object.hasOwn(CLASS_ESCAPES, character) ? CLASS_ESCAPES[character] : undefined;
    if (set !== undefined) return set;
    if (Object.hasOwn(CONTROL_ESCAPES, character)) {
      const code = CONTROL_ESCAPES[character]!;
      return [[code, code]];
    }
    if (character === "x") return this.#hexadecimal(/^[0-9a-fA-F]{2}/);
    if (character === "u") return this.#hexadecimal(/^(?:[0-9a-fA-F]{4}|\{[0-9a-fA-F]{1,6}\})/);
    if (/^[\^$\\.*+?()[\]{}|/-]$/.test(character)) return [point(character)];
    return this.#refuse(`\\${character} is not supported`);
  }

  #hexadecimal(form: RegExp): readonly CodePointRange[] {
    const match = form.exec(this.#characters.slice(this.#at, this.#at + 8).join(""));
    if (match === null) this.#refuse("a code point's number is malformed");
    this.#at += match[0].length;
    const code = Number.parseInt(match[0].replace(/[{}]/g, ""), 16);
    if (code > 0x10ffff || (code >= 0xd800 && code <= 0xdfff)) {
      this.#refuse("a code point's number is outside Unicode or a surrogate");
    }
    return [[code, code]];
  }
}

function point(character: string): CodePointRange {
  const code = character.codePointAt(0)!;
  return [code, code];
}

function singlePoint(ranges: readonly CodePointRange[]): number | null {
  const [first] = ranges;
  return ranges.length === 1 && first![0] === first![1] ? first![0] : null;
}
