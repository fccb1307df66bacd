/**
 * @file A strict JSON scanner for headers that come from strangers.
 *
 * The caller says what must come next; the scanner builds no tree, so a hostile text costs little
 * more memory than its own length. Beyond RFC 8259 it refuses what two parsers could read
 * differently: a key that occurs twice in an object, a string that is not well-formed Unicode, and
 * (where a natural number is asked for) signs, fractions, exponents and anything above 2^53 − 1.
 * Nesting that is skipped may be 64 deep.
 */
import { OperationalError } from "../base/errors.ts";

const DEPTH_MAX = 64;
const SPACE = 0x20;
const QUOTE = 0x22;
const BACKSLASH = 0x5c;
const NUMBER = /-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?/y;
const NATURAL_NUMBER = /(?:0|[1-9][0-9]*)(?![0-9.eE])/y;
const WORD = /true|false|null/y;

/** Decode UTF-8 strictly, or throw what names the subject. */
export function decodeUtf8(bytes: Uint8Array, subject: string): string {
  try {
    return new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(bytes);
  } catch (error) {
    const message = `${subject} is not UTF-8 text`;
    throw new OperationalError("checkpoint.invalid", message, { subject }, error);
  }
}

export class JsonScanner {
  readonly #text: string;
  readonly #subject: string;
  #position = 0;

  /** `subject` begins every error message. */
  constructor(text: string, subject: string) {
    this.#text = text;
    this.#subject = subject;
  }

  /** An object; `member` must scan the value that belongs to the key. */
  object(member: (key: string) => void): void {
    this.#expect("{");
    if (this.#take("}")) return;
    const keys = new Set<string>();
    do {
      const key = this.string();
      if (keys.has(key)) this.fail(`key ${JSON.stringify(key)} occurs twice`);
      keys.add(key);
      this.#expect(":");
      member(key);
    } while (this.#take(","));
    this.#expect("}");
  }

  /** An array; `element` must scan one value. */
  array(element: () => void): void {
    this.#expect("[");
    if (this.#take("]")) return;
    do element();
    while (this.#take(","));
    this.#expect("]");
  }

  string(): string {
    this.#expect('"');
    const start = this.#position;
    let hasEscapes = false;
    // By hand: a regular expression's stack would not survive a string of many megabytes.
    for (;;) {
      const code = this.#text.charCodeAt(this.#position);
      if (code === QUOTE) break;
      if (Number.isNaN(code)) this.fail("string without an end");
      if (code < SPACE) this.fail("control character in a string");
      if (code === BACKSLASH) hasEscapes = true;
      this.#position += code === BACKSLASH ? 2 : 1;
    }
    const raw = this.#text.slice(start, this.#position);
    const value = hasEscapes ? this.#unescape(raw) : raw;
    if (!value.isWellFormed()) this.fail("string with half of a surrogate pair");
    this.#position++;
    return value;
  }

  /** A whole number in 0..2^53 − 1, written with digits only. */
  naturalNumber(): number {
    const value = Number(this.#match(NATURAL_NUMBER, "a whole number >= 0"));
    if (!Number.isSafeInteger(value)) this.fail("number above 2^53 - 1");
    return value;
  }

  /** Any value, checked and dropped. */
  skipValue(depth: number = 0): void {
    if (depth > DEPTH_MAX) this.fail(`nesting deeper than ${DEPTH_MAX}`);
    const next = this.#peek();
    if (next === "{") this.object(() => this.skipValue(depth + 1));
    else if (next === "[") this.array(() => this.skipValue(depth + 1));
    else if (next === '"') this.string();
    else if (next === "t" || next === "f" || next === "n") this.#match(WORD, "a value");
    else this.#match(NUMBER, "a value");
  }

  /** Nothing but white space may follow. */
  end(): void {
    if (this.#peek() !== "") this.fail("text after the end of the value");
  }

  fail(problem: string): never {
    const message = `${this.#subject}: ${problem} (at character ${this.#position})`;
    throw new OperationalError("checkpoint.invalid", message, { subject: this.#subject });
  }

  #unescape(raw: string): string {
    try {
      return JSON.parse(`"${raw}"`) as string;
    } catch {
      return this.fail("string with an unknown escape");
    }
  }

  /** The next character that is not white space, or "" at the end. */
  #peek(): string {
    for (;;) {
      const character = this.#text.charAt(this.#position);
      if (character !== " " && character !== "\n" && character !== "\r" && character !== "\t") {
        return character;
      }
      this.#position++;
    }
  }

  #take(character: string): boolean {
    if (this.#peek() !== character) return false;
    this.#position++;
    return true;
  }

  #expect(character: string): void {
    if (!this.#take(character)) this.fail(`expected ${character}`);
  }

  #match(pattern: RegExp, what: string): string {
    this.#peek();
    pattern.lastIndex = this.#position;
    const token = pattern.exec(this.#text)?.[0];
    if (token === undefined) this.fail(`expected ${what}`);
    this.#position += token.length;
    return token;
  }
}
