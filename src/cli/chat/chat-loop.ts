/**
 * @file A conversation in the terminal: a line in, an answer out, until there are no more lines.
 *
 * Ctrl-C while the model answers ends the answer and keeps the conversation, what was said
 * included. A line that begins with `/` is a command. What a model writes is text: control
 * characters in it, which could steer the terminal, are shown as such.
 */
import { OperationalError } from "../../base/errors.ts";
import type { Output } from "../output.ts";
import { ask, type ChatServer, type ChatSettings, type Message } from "./chat-client.ts";

/** Where lines come from. */
export interface LineSource {
  /** The next line; null when there are no more. */
  next(prompt: string): Promise<string | null>;
  /** Called for Ctrl-C, as long as the source is open. */
  onInterrupt(listener: () => void): void;
}

export interface ChatOptions {
  readonly server: ChatServer;
  readonly model: string;
  readonly system: string | undefined;
  readonly settings: ChatSettings;
}

const HELP = [
  "/help       this",
  "/new        forget the conversation and begin another",
  "/retry      ask the last question again",
  "/thinking   let the model think before it answers, or no longer",
  "/quit       leave; so does Ctrl-D",
  "Ctrl-C      end the answer that is being written",
  "A line that ends with \\ goes on in the next one.",
];

export class ChatLoop {
  readonly #output: Output;
  readonly #lines: LineSource;
  readonly #options: ChatOptions;
  #settings: ChatSettings;
  #messages: Message[];
  #answering: AbortController | undefined;

  constructor(output: Output, lines: LineSource, options: ChatOptions) {
    this.#output = output;
    this.#lines = lines;
    this.#options = options;
    this.#settings = options.settings;
    this.#messages = this.#beginning();
    lines.onInterrupt(() => this.#interrupt());
  }

  /** Runs until the lines end; the conversation. */
  async run(): Promise<readonly Message[]> {
    for (;;) {
      const line = await this.#nextMessage();
      if (line === null || line === "/quit") return this.#messages;
      if (line.startsWith("/")) await this.#command(line);
      else if (line.trim() !== "") {
        this.#messages.push({ role: "user", content: line });
        await this.#answer();
      }
    }
  }

  async #nextMessage(): Promise<string | null> {
    let text = "";
    for (;;) {
      const line = await this.#lines.next(text === "" ? "> " : "… ");
      if (line === null) return text === "" ? null : text;
      if (!line.endsWith("\\")) return text + line;
      text += `${line.slice(0, -1)}\n`;
    }
  }

  #beginning(): Message[] {
    const { system } = this.#options;
    return system === undefined ? [] : [{ role: "system", content: system }];
  }

  #interrupt(): void {
    if (this.#answering !== undefined) this.#answering.abort();
    else this.#say("/quit or Ctrl-D leaves");
  }

  async #command(line: string): Promise<void> {
    switch (line.trim()) {
      case "/help":
        for (const text of HELP) this.#say(text);
        break;
      case "/new":
        this.#messages = this.#beginning();
        this.#say("a new conversation");
        break;
      case "/retry": {
        const last = this.#messages.findLastIndex(({ role }) => role === "user");
        if (last < 0) this.#say("nothing was asked yet");
        else {
          this.#messages = this.#messages.slice(0, last + 1);
          await this.#answer();
        }
        break;
      }
      case "/thinking":
        this.#settings = { ...this.#settings, thinking: !this.#settings.thinking };
        this.#say(this.#settings.thinking ? "it thinks first" : "it answers at once");
        break;
      default:
        this.#say(`there is no ${printable(line)}; /help lists what there is`);
    }
  }

  #say(text: string): void {
    this.#output.line(this.#output.style("dim", text));
  }

  async #answer(): Promise<void> {
    const { server, model } = this.#options;
    const answering = new AbortController();
    this.#answering = answering;
    let content = "";
    let kind: string | undefined;
    try {
      const options = { settings: this.#settings, signal: answering.signal };
      for await (const piece of ask(server, model, this.#messages, options)) {
        if (kind === "reasoning" && piece.kind === "content") this.#output.text("\n\n");
        kind = piece.kind;
        const shown = printable(piece.text);
        this.#output.text(kind === "reasoning" ? this.#output.style("dim", shown) : shown);
        if (kind === "content") content += piece.text;
      }
      this.#output.line();
    } catch (error) {
      this.#output.line();
      if (answering.signal.aborted) this.#say("(interrupted)");
      else if (error instanceof OperationalError) this.#output.warn(printable(error.message));
      else throw error;
    } finally {
      this.#answering = undefined;
    }
    // A question that got nothing is not kept: the next one would follow it without an answer.
    if (content === "") this.#messages.pop();
    else this.#messages.push({ role: "assistant", content });
  }
}

/** The text with control characters, but tabs and line ends, as visible signs. */
export function printable(text: string): string {
  return text.replaceAll(/[\p{Cc}\u2028\u2029]/gu, (character) => {
    if (character === "\n" || character === "\t") return character;
    const code = character.codePointAt(0)!;
    return code < 0x20 ? String.fromCodePoint(0x2400 + code) : "\ufffd";
  });
}
