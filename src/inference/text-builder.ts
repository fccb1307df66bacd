/**
 * @file The text of a completion as it grows: given out when it is decided. Whole characters only,
 * nothing that could still become a stop string; special tokens have no text.
 */
import type { Tokenizer } from "../tokenizer/tokenizer.ts";
import { StopScanner } from "./stop.ts";

/** Tokens to text, stop strings watched. */
export class TextBuilder {
  readonly #decoder: ReturnType<Tokenizer["decoder"]>;
  readonly #scanner: StopScanner;
  readonly #onText: (text: string) => void;
  /** All that was given out. */
  text = "";
  /** The stop string that was found; nothing is to be pushed after it. */
  stop: string | null = null;

  constructor(
    tokenizer: Tokenizer,
    stopStrings: readonly string[],
    onText: (text: string) => void,
  ) {
    this.#decoder = tokenizer.decoder({ skipSpecialTokens: true });
    this.#scanner = new StopScanner(stopStrings);
    this.#onText = onText;
  }

  /** A token, without its first `repeated` bytes, which were said before. */
  push(token: number, repeated = 0): void {
    this.#pushText(this.#decoder.push(token, repeated));
  }

  /** Give out what was held back: half a character, the beginning of a stop string. */
  finish(): void {
    this.#pushText(this.#decoder.end());
    if (this.stop === null) this.#give(this.#scanner.end());
  }

  #pushText(text: string): void {
    const scanned = this.#scanner.push(text);
    this.stop = scanned.stop;
    this.#give(scanned.text);
  }

  #give(text: string): void {
    if (text === "") return;
    this.text += text;
    this.#onText(text);
  }
}
