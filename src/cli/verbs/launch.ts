/**
 * @file `hadal launch`: ranks on this machine through mpirun, with what a laptop needs said for it.
 *
 * More ranks than processors are allowed, ranks are not bound to processors, and the threads of the
 * machine are divided among them. For several machines `mpirun` itself says where they are.
 */
import { spawn, spawnSync } from "node:child_process";
import { availableParallelism } from "node:os";
import process from "node:process";
import { fileURLToPath } from "node:url";
import { OperationalError } from "../../base/errors.ts";
import { floorDiv } from "../../base/integers.ts";
import { siblingModule } from "../../base/modules.ts";
import type { launch } from "../declarations/launch.ts";
import type { Run } from "../verb.ts";

export const run: Run<typeof launch> = async ({ ranks, rest }, { output, interruption, env }) => {
  requireMpirun();
  const [program, ...words] = rest;
  const start = fileURLToPath(siblingModule("../start", import.meta.url));
  const command = program === "hadal" ? [process.execPath, start, ...words] : rest;
  const asRoot = process.getuid?.() === 0 ? ["--allow-run-as-root"] : [];
  const options = ["--oversubscribe", "--bind-to", "none", "-np", String(ranks)];
  const threads = Math.max(1, floorDiv(availableParallelism(), ranks));
  const child = spawn("mpirun", [...asRoot, ...options, ...command], {
    stdio: output.json ? ["ignore", "ignore", "inherit"] : "inherit",
    env: { ...env, HADAL_THREADS: env["HADAL_THREADS"] ?? String(threads) },
  });
  interruption.orderly().addEventListener("abort", () => child.kill("SIGTERM"));
  const code = await new Promise<number>((resolve, reject) => {
    child.once("error", reject);
    child.once("close", (exitCode) => resolve(exitCode ?? 1));
  });
  if (code !== 0 && interruption.exitCode === undefined) {
    const message = `mpirun ended with code ${code}; its words and those of the ranks stand above`;
    throw new OperationalError("parallel.launch", message, { code });
  }
  output.result({ ranks, code });
};

function requireMpirun(): void {
  const { status, stdout } = spawnSync("mpirun", ["--version"], { encoding: "utf8" });
  if (status === 0 && stdout.includes("Open MPI")) return;
  throw new OperationalError(
    "platform.mpirun",
    "Open MPI's mpirun was not found; install Open MPI (Debian: openmpi-bin libopenmpi3)",
  );
}
