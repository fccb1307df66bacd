/**
 * @file How much of the exchange of experts' tokens a chunk of a prompt waits for with one
 * micro-batch and with two, over a link as slow as the ranks compute.
 *
 *     node bin/node24.js bench/prefill-overlap.ts [PRESET] [chunk] [prefix]        on threads
 *     mpirun -np 2 node bin/node24.js bench/prefill-overlap.ts PRESET CHUNK PREFIX mpi
 */
import process from "node:process";
import { runUnderMpi } from "../src/parallel/communicator/mpi/run-under-mpi.ts";
import { runOnThreads } from "../src/parallel/communicator/threads/run-on-threads.ts";
import { type PrefillCase, type PrefillTimes, runRank } from "./prefill-overlap-ranks.ts";

const [preset = "small", chunk = "256", prefix = "0", where] = process.argv.slice(2);
const counts = { chunkTokens: Number(chunk), prefixTokens: Number(prefix) };
const input = { preset, ...counts } as PrefillCase;
const program = new URL("./prefill-overlap-ranks.ts", import.meta.url);
const times = (
  where === "mpi"
    ? await runUnderMpi((context) => runRank({ ...context, input }))
    : (await runOnThreads({ numRanks: 2, program, input }))[0]
) as PrefillTimes | null;

if (times !== null) {
  const { bytesPerPass, linkMs, whole, two, slowWhole, slowTwo } = times;
  const median = (values: readonly number[]): number =>
    values.toSorted((a, b) => a - b)[Math.floor(values.length / 2)]!;
  const exposed = (slow: readonly number[], fast: readonly number[]): number[] =>
    slow.map((each, round) => (100 * (each - fast[round]!)) / linkMs);
  const say = (name: string, values: readonly number[], unit: string): void => {
    const range = `(${Math.min(...values).toFixed(1)} to ${Math.max(...values).toFixed(1)})`;
    process.stdout.write(
      `${name.padEnd(30)}${median(values).toFixed(1).padStart(8)} ${unit} ${range}\n`,
    );
  };
  process.stdout.write(`${preset}, ${chunk} tokens behind ${prefix}, ${bytesPerPass} bytes\n`);
  process.stdout.write(`operations of the slow link ${linkMs.toFixed(1)} ms\n`);
  say("one micro-batch", whole, "ms");
  say("two", two, "ms");
  say("one, slow link", slowWhole, "ms");
  say("two, slow link", slowTwo, "ms");
  say("exposed with one", exposed(slowWhole, whole), "%");
  say("exposed with two", exposed(slowTwo, two), "%");
}
