/**
 * @file `hadal chat` on a pseudo-terminal, which `script` (util-linux) makes: what a person sees
 * and types.
 */
import assert from "node:assert/strict";
import { type ChildProcess, spawn, spawnSync } from "node:child_process";
import { once } from "node:events";
import { test } from "node:test";
import { fileURLToPath } from "node:url";
import { startTestServer, tinyTokenizer } from "../src/serving/test-support.ts";
import { leashed } from "./support/leash.ts";

const HADAL = fileURLToPath(new URL("../bin/hadal.js", import.meta.url));
const hasScript = spawnSync("script", ["--version"], { encoding: "utf8" }).stdout?.includes("util");
const DIM = "\u001b[2m";

class Terminal implements Disposable {
  readonly #child: ChildProcess;
  #shown = "";
  #seen = 0;

  /** Runs a command of the shell on a terminal of 80 columns. */
  constructor(command: string) {
    const env = { ...process.env, TERM: "xterm" };
    delete (env as Record<string, unknown>)["NO_COLOR"];
    const words = ["-qec", `stty cols 80 rows 24; ${command}`, "/dev/null"];
    this.#child = spawn("script", words, { env });
    this.#child.stdout!.setEncoding("utf8").on("data", (part: string) => {
      this.#shown += part;
    });
  }

  type(keys: string): void {
    this.#child.stdin!.write(keys);
  }

  /** Waits for a text after what was waited for before; what was shown up to it. */
  async shows(text: string): Promise<string> {
    while (!this.#shown.slice(this.#seen).includes(text)) {
      if (this.#child.exitCode !== null) assert.fail(`ended without ${text}: ${this.#shown}`);
      await once(this.#child.stdout!, "data");
    }
    const from = this.#seen;
    this.#seen = this.#shown.indexOf(text, from) + text.length;
    return this.#shown.slice(from, this.#seen);
  }

  async end(): Promise<number | null> {
    if (this.#child.exitCode === null) await once(this.#child, "exit");
    return this.#child.exitCode;
  }

  [Symbol.dispose](): void {
    leashed(this.#child)[Symbol.dispose]();
  }
}

test("a person talks, interrupts, goes back in history and leaves", {
  skip: hasScript !== true && "no script (util-linux) makes a terminal here",
}, async () => {
  let release = (): void => {};
  const held = new Promise<void>((resolve) => {
    release = resolve;
  });
  const says = "I count.\n</think>\n\none two three four";
  const last = tinyTokenizer().encode(says, { allowAddedTokens: true }).length - 1;
  await using server = await startTestServer({
    says,
    beforeToken: async (request, index) => {
      if (request === server.engine.requests[0] && index === last) await held;
    },
  });
  using terminal = new Terminal(`${process.execPath} ${HADAL} chat --url ${server.url} --thinking`);
  await terminal.shows("> ");
  terminal.type("Count!\r");
  // Thinking is dimmed, the answer is not.
  assert.ok((await terminal.shows("count")).includes(DIM));
  await terminal.shows("one");
  terminal.type("\u0003");
  await terminal.shows("(interrupted)");
  release();
  await terminal.shows("> ");
  terminal.type("And now?\r");
  await terminal.shows("four");
  await terminal.shows("> ");
  const prompt = server.engine.tokenizer.decode(server.engine.requests[1]!.prompt);
  assert.match(prompt, /Count!<｜Assistant｜>.*one.*And now\?/s);
  // The last line but one, from the history; then it is thrown away.
  terminal.type("\u001b[A\u001b[A");
  await terminal.shows("Count!");
  terminal.type("\u0003");
  await terminal.shows("/quit or Ctrl-D leaves");
  await terminal.shows("> ");
  terminal.type("/help\r");
  await terminal.shows("/retry");
  await terminal.shows("> ");
  terminal.type("\u0004");
  assert.equal(await terminal.end(), 0);
  assert.equal(server.engine.requests.length, 2);
});
