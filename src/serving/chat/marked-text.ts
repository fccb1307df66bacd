/**
 * @file Text from a format and text from users, put together without one passing for the other.
 *
 * A marker of the format becomes its added token (or is spelled, where a vocabulary has none); text
 * from users becomes ordinary tokens whatever it spells. Text of users that is to pass through a
 * template is `shielded`: a character that occurs nowhere is put into each spelling of an added
 * token, and taken out again after the template's own markers have been found.
 */
import { TokenBuffer } from "../../tokenizer/token-buffer.ts";
import type { Tokenizer } from "../../tokenizer/tokenizer.ts";

/** Writes a prompt. */
export class PromptWriter {
  readonly #tokenizer: Tokenizer;
  readonly #out = new TokenBuffer();
  #text = "";

  constructor(tokenizer: Tokenizer) {
    this.#tokenizer = tokenizer;
  }

  /** Text from anyone. */
  text(text: string): this {
    // Gathered, so that where two texts meet tokens may join them, as in a template's output.
    this.#text += text;
    return this;
  }

  /** A marker of the format. */
  marker(spelling: string): this {
    const id = this.#tokenizer.idOfName(spelling);
    if (id === undefined || this.#tokenizer.addedToken(id) === undefined)
      return this.text(spelling);
    this.#flush();
    this.#out.push(id);
    return this;
  }

  tokens(): Int32Array {
    this.#flush();
    return this.#out.copy();
  }

  #flush(): void {
    if (this.#text !== "") this.#tokenizer.encodeTo(this.#out, this.#text);
    this.#text = "";
  }
}

/** Private-use characters: one that no text holds is found among them. */
const CANDIDATES = { from: 0xe000, to: 0xf8ff };

export class Shield {
  readonly #character: string;
  readonly #spelling: RegExp | undefined;

  /** For texts that together are `everything`. */
  constructor(tokenizer: Tokenizer, everything: string) {
    let code = CANDIDATES.from;
    while (code < CANDIDATES.to && everything.includes(String.fromCharCode(code))) code++;
    this.#character = String.fromCharCode(code);
    const spellings = tokenizer.vocabulary.addedTokens.map(({ content }) => content);
    const longestFirst = spellings.toSorted((a, b) => b.length - a.length);
    const escaped = longestFirst.map((text) => text.replace(/[.*+?^${}()|[\]\\/]/g, "\\$&"));
    this.#spelling = escaped.length === 0 ? undefined : new RegExp(escaped.join("|"), "gu");
  }

  /** The text with its markers broken. */
  protect(text: string): string {
    if (this.#spelling === undefined) return text;
    const clean = text.replaceAll(this.#character, "");
    return clean.replace(this.#spelling, (marker) => {
      const [first = "", ...rest] = marker;
      return first + this.#character + rest.join("");
    });
  }

  /** The tokens of a template's output. */
  tokens(tokenizer: Tokenizer, rendered: string): Int32Array {
    const writer = new PromptWriter(tokenizer);
    let position = 0;
    for (const match of this.#spelling === undefined ? [] : rendered.matchAll(this.#spelling)) {
      writer.text(this.#restore(rendered.slice(position, match.index))).marker(match[0]);
      position = match.index + match[0].length;
    }
    return writer.text(this.#restore(rendered.slice(position))).tokens();
  }

  #restore(text: string): string {
    return text.replaceAll(this.#character, "");
  }
}
