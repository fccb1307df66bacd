/**
 * @file Where a verb's words go: people read lines, machines read one JSON object.
 *
 * With `--json`, stdout holds nothing but the result on its last line; human lines are dropped,
 * warnings and errors go to stderr as always. Colour only on a terminal, and not under NO_COLOR
 * (https://no-color.org) or TERM=dumb.
 */
import { styleText } from "node:util";
import { assert } from "../base/errors.ts";
import { ProgressLine, type ProgressState, type TextStream } from "./progress.ts";
import { type Alignment, columns } from "./text.ts";

export type Style = "bold" | "dim" | "red" | "green" | "yellow" | "cyan";

export interface OutputOptions {
  readonly stdout: TextStream;
  readonly stderr: TextStream;
  readonly env: Readonly<Record<string, string | undefined>>;
  readonly json: boolean;
}

const DEFAULT_COLUMNS = 80;

export class Output {
  readonly json: boolean;
  readonly #stdout: TextStream;
  readonly #stderr: TextStream;
  readonly #env: Readonly<Record<string, string | undefined>>;
  readonly #progress: ProgressLine;
  #hasResult = false;

  constructor({ stdout, stderr, env, json }: OutputOptions) {
    this.json = json;
    this.#stdout = stdout;
    this.#stderr = stderr;
    this.#env = env;
    this.#progress = new ProgressLine(stderr);
  }

  /** The characters of a line on stdout; a terminal that says 0, as mpirun's, has not been told. */
  get width(): number {
    return this.#stdout.columns || DEFAULT_COLUMNS;
  }

  /** Whether a person sits before stdout, who can end what does not end by itself. */
  get isInteractive(): boolean {
    return !this.json && this.#stdout.isTTY === true && !this.#env["CI"];
  }

  /** A line (or several) for people. */
  line(text = ""): void {
    if (this.json) return;
    this.#progress.clear();
    this.#stdout.write(`${text}\n`);
  }

  /** Text for people as it comes, without a line's end. */
  text(text: string): void {
    if (this.json) return;
    this.#progress.clear();
    this.#stdout.write(text);
  }

  /** Rows in aligned columns, the first row being the heading. */
  table(rows: readonly (readonly string[])[], align: readonly Alignment[] = []): void {
    for (const [index, text] of columns(rows, align).entries()) {
      this.line(index === 0 ? this.style("bold", text) : text);
    }
  }

  /** Something the user should know although the work goes on. */
  warn(text: string): void {
    this.#progress.clear();
    this.#stderr.write(`${this.#styleFor(this.#stderr, "yellow", "warning:")} ${text}\n`);
  }

  /** Why the work ended; `kind` is "error" for the world's doing, "internal error" for ours. */
  fail(kind: "error" | "internal error", text: string): void {
    this.#progress.clear();
    this.#stderr.write(`${this.#styleFor(this.#stderr, "red", `${kind}:`)} ${text}\n`);
  }

  /** Help asked for by mistake belongs to stderr, where it does not enter a pipe. */
  helpAfterMistake(text: string): void {
    this.#stderr.write(`${text}\n`);
  }

  /** Shows how far the work is, on a terminal only; the next line, warning or result wipes it. */
  progress(state: ProgressState): void {
    this.#progress.update(state);
  }

  /** Ends the live line, where nothing is printed after it. */
  endProgress(): void {
    this.#progress.clear();
  }

  /** The verb's result, once and last; printed with `--json` only. */
  result(value: unknown): void {
    assert(!this.#hasResult, "a verb has one result");
    this.#hasResult = true;
    this.#progress.clear();
    if (this.json) this.#stdout.write(`${JSON.stringify(value)}\n`);
  }

  /** Whether the result has been given, after which stdout is closed to JSON. */
  get hasResult(): boolean {
    return this.#hasResult;
  }

  /** The text in a colour or weight, where stdout is a terminal that may show it. */
  style(style: Style, text: string): string {
    return this.#styleFor(this.#stdout, style, text);
  }

  #styleFor(stream: TextStream, style: Style, text: string): string {
    const plain = !stream.isTTY || this.#env["NO_COLOR"] || this.#env["TERM"] === "dumb";
    return plain ? text : styleText(style, text, { validateStream: false });
  }
}
