/**
 * @file How many rows of an exchange go in one message: measured on the link itself.
 *
 * Short messages pay their latency each; in long ones nothing travels while they are gathered, and
 * what was gathered has left the cache when it is sent. Where the best lies depends on the machine,
 * the transport and the length of rows, so every candidate moves an even exchange of the wanted
 * size, and all ranks take the one whose slowest rank is fastest. It changes no result.
 */
import type { Arena } from "../../../tensor/arena.ts";
import { view } from "../../../tensor/view.ts";
import type { Communicator } from "../../communicator/communicator.ts";
import { finish } from "../../communicator/work.ts";
import { type Hop, moveRows } from "./hop.ts";

const CANDIDATES = [32, 64, 128, 256, 512, 1024, 2048, 4096] as const;
/** Each candidate's time is its best of these. */
const REPEATS = 4;

/** What an exchange usually moves. */
export interface ExchangeSize {
  readonly numTokens: number;
  readonly rowBytes: number;
}

/** Collective over the link. `now` is in any unit. */
export function tuneChunkRows(
  link: Communicator,
  { numTokens, rowBytes }: ExchangeSize,
  scratch: Arena,
  now: () => number,
): number {
  const candidates = CANDIDATES.filter((rows, index) => index === 0 || rows < 2 * numTokens);
  using _mark = scratch.mark();
  const source = scratch.allocate("u8", [numTokens, rowBytes]);
  const target = scratch.allocate("u8", [numTokens * link.size, rowBytes]);
  const all = Array.from({ length: numTokens }, (_, row) => row);
  const hop: Hop = {
    communicator: link,
    sent: Array.from({ length: link.size }, () => all),
    receiveCounts: Array.from({ length: link.size }, () => numTokens),
  };
  const times = scratch.allocate("f64", [candidates.length]);
  view(times).fill(Number.POSITIVE_INFINITY);
  for (let repeat = 0; repeat < REPEATS; repeat++) {
    for (const [index, chunkRows] of candidates.entries()) {
      link.barrier().wait();
      const start = now();
      finish(moveRows(hop, [source], [target], { scratch, chunkRows }));
      view(times)[index] = Math.min(view(times)[index]!, now() - start);
    }
  }
  link.allReduce(times, times, "max").wait();
  const slowest = view(times);
  return candidates.reduce((best, rows, index) =>
    slowest[index]! < slowest[candidates.indexOf(best)]! ? rows : best,
  );
}
