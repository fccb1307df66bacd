/** @file A server in a process of its own, as benchmarks start and end it. */
import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { OperationalError } from "../../../base/errors.ts";
import { siblingModule } from "../../../base/modules.ts";

const READY_MS = 180_000;
/** Linux tells programs so whatever its own clock does. */
const TICKS_A_SECOND = 100;

export class ServerProcess implements AsyncDisposable {
  readonly url: string;
  readonly #child: ChildProcess;

  private constructor(child: ChildProcess, url: string) {
    this.#child = child;
    this.url = url;
  }

  /** `hadal serve` with these words, on a port of the system's choice. */
  static serve(...words: readonly string[]): Promise<ServerProcess> {
    return ServerProcess.start("../../start", ["serve", ...words, "--port", "0"]);
  }

  /** A module that prints the address it serves at; resolves once it has. */
  static async start(module: string, words: readonly string[]): Promise<ServerProcess> {
    const script = fileURLToPath(siblingModule(module, import.meta.url));
    const child = spawn(process.execPath, [script, ...words], {
      stdio: ["ignore", "pipe", "inherit"],
      // A benchmark that is killed takes its server along.
      env: { ...process.env, HADAL_LAUNCHER_PID: String(process.pid) },
    });
    const url = await addressOf(child);
    // The log of requests is nobody's, but a full pipe would stop the server.
    child.stdout!.resume();
    return new ServerProcess(child, url);
  }

  /** Bytes resident now; null where the system does not say. */
  residentBytes(): number | null {
    try {
      const status = readFileSync(`/proc/${this.#child.pid}/status`, "utf8");
      return Number(/VmRSS:\s+(\d+) kB/.exec(status)![1]) * 1024;
    } catch {
      return null;
    }
  }

  /** Seconds of processor time that it has used; null where the system does not say. */
  processorSeconds(): number | null {
    try {
      const stat = readFileSync(`/proc/${this.#child.pid}/stat`, "utf8");
      // After the name, which is in brackets: user and system time are the 12th and 13th field.
      const fields = stat.slice(stat.lastIndexOf(")") + 2).split(" ");
      return (Number(fields[11]) + Number(fields[12])) / TICKS_A_SECOND;
    } catch {
      return null;
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    if (this.#child.exitCode !== null || this.#child.signalCode !== null) return;
    const ended = once(this.#child, "exit");
    this.#child.kill("SIGTERM");
    await ended;
  }
}

async function addressOf(child: ChildProcess): Promise<string> {
  const { promise, resolve, reject } = Promise.withResolvers<string>();
  let text = "";
  const fail = (): void => {
    const message = `the server did not start; it printed: ${text.slice(0, 500)}`;
    reject(new OperationalError("platform.benchmark", message));
  };
  const timer = setTimeout(() => {
    child.kill("SIGKILL");
    fail();
  }, READY_MS);
  const read = (part: string): void => {
    text += part;
    const url = /http:\/\/127\.0\.0\.1:\d+/.exec(text)?.[0];
    if (url !== undefined) resolve(url);
  };
  child.stdout!.setEncoding("utf8").on("data", read);
  child.once("exit", fail);
  try {
    return await promise;
  } finally {
    clearTimeout(timer);
    child.stdout!.off("data", read);
    child.off("exit", fail);
  }
}
