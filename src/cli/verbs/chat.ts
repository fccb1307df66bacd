/**
 * @file `hadal chat`: a conversation with a model, its own or a server's.
 *
 * With --model a server of that model runs in this process, on a port and with a key that nobody
 * else knows; so both ways are one.
 */
import { createInterface } from "node:readline";
import { OperationalError } from "../../base/errors.ts";
import { type ChatServer, firstModel } from "../chat/chat-client.ts";
import { ChatLoop, type LineSource } from "../chat/chat-loop.ts";
import type { chat } from "../declarations/chat.ts";
import { openPrivateServer } from "../serve-model.ts";
import type { Run } from "../verb.ts";

export const run: Run<typeof chat> = async (values, context) => {
  const { output, env } = context;
  const { model: path, url, weights } = values;
  if (path === undefined && url === undefined) {
    throw new OperationalError("usage.flags", "name a model with --model, or a server with --url");
  }
  await using own =
    path === undefined ? undefined : await openPrivateServer({ path, weights }, context);
  const key = env["HADAL_API_KEY"];
  const server: ChatServer = own ?? { url: url!.replace(/\/(v1\/?)?$/, ""), key };
  const name = values.name ?? (await firstModel(server, new AbortController().signal));
  output.line(output.style("dim", `${name}; /help says what there is beside talking`));
  using lines = terminalLines();
  const loop = new ChatLoop(output, lines, {
    server,
    model: name,
    system: values.system,
    settings: {
      thinking: values.thinking,
      maxTokens: values["max-tokens"],
      temperature: values.temperature,
    },
  });
  output.result({ model: name, messages: await loop.run() });
};

/** The terminal's lines, with a history in it; or those of a pipe, without prompts. */
function terminalLines(): LineSource & Disposable {
  const terminal = process.stdin.isTTY === true && process.stdout.isTTY === true;
  const reader = createInterface({ input: process.stdin, output: process.stdout, terminal });
  const waiting: string[] = [];
  let wake: (() => void) | undefined;
  let isClosed = false;
  reader.on("line", (line) => {
    waiting.push(line);
    wake?.();
  });
  reader.on("close", () => {
    isClosed = true;
    wake?.();
  });
  return {
    async next(prompt: string): Promise<string | null> {
      const isAsking = terminal && !isClosed;
      if (isAsking) {
        reader.setPrompt(prompt);
        reader.prompt();
      }
      while (waiting.length === 0 && !isClosed) {
        await new Promise<void>((resolve) => {
          wake = resolve;
        });
      }
      wake = undefined;
      const line = waiting.shift() ?? null;
      // Ctrl-D leaves the cursor behind the prompt.
      if (line === null && isAsking) process.stdout.write("\n");
      return line;
    },
    onInterrupt: (listener) =>
      reader.on("SIGINT", () => {
        const isAsked = wake !== undefined;
        // What was typed goes, as in a shell; what is said stands on a line of its own.
        if (isAsked) {
          reader.write(null, { ctrl: true, name: "e" });
          reader.write(null, { ctrl: true, name: "u" });
          process.stdout.write("\n");
        }
        listener();
        if (isAsked) reader.prompt();
      }),
    [Symbol.dispose]: () => reader.close(),
  };
}
