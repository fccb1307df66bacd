/**
 * @file The process of `hadal`: started by the launcher, it wires streams and signals to the
 * command line.
 *
 * A reader that goes away (`hadal inspect … | head`) ends it without a word, as it ends any other
 * program.
 */
import { EXIT_BROKEN_PIPE, exitCodeOf } from "./exit-codes.ts";
import { Interruption } from "./interruption.ts";
import { main, report } from "./main.ts";
import { Output } from "./output.ts";
import { asksForJson } from "./parse.ts";
import { VERBS } from "./verbs.ts";

const LAUNCHER_CHECK_MS = 250;
const words = process.argv.slice(2);
const interruption = new Interruption((code) => process.exit(code));
const world = { stdout: process.stdout, stderr: process.stderr, env: process.env, interruption };

for (const signal of ["SIGINT", "SIGTERM"] as const) {
  process.on(signal, () => interruption.receive(signal));
}
for (const stream of [process.stdout, process.stderr]) {
  stream.on("error", (error: NodeJS.ErrnoException) => {
    if (error.code === "EPIPE") process.exit(EXIT_BROKEN_PIPE);
    throw error;
  });
}
endWithLauncher(Number(process.env["HADAL_LAUNCHER_PID"] ?? 0));
// A promise nobody awaited or an event nobody handled ends the process like an error of the verb
// itself.
process.on("uncaughtException", (error) => {
  report(error, new Output({ ...world, json: asksForJson(words) }));
  process.exit(exitCodeOf(error));
});

process.exitCode = await main(words, VERBS, world);

/**
 * A launcher on an older Node runs this process in its place; who kills it means this one. Where
 * parents are not replaced when they die (Windows), nothing is noticed.
 */
function endWithLauncher(pid: number): void {
  if (pid === 0 || process.ppid !== pid) return;
  const timer = setInterval(() => {
    if (process.ppid !== pid) process.kill(process.pid, "SIGKILL");
  }, LAUNCHER_CHECK_MS);
  timer.unref();
}
