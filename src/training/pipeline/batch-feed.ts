/**
 * @file Micro-batches for every rank: the leader draws them, the others are given them. So data and
 * tokenizer are needed on one rank alone, and all see what one process would.
 */
import type { LoaderState } from "../data/batches.ts";
import type { BatchSource } from "../trainer.ts";
import type { RankChannel } from "./rank-channel.ts";

/** The state of a loader that draws nothing. */
const NOTHING_DRAWN: LoaderState = { epoch: 0, place: 0, offset: 0, numSpans: 0 };

/** The leader's: what it draws goes to all. */
export function fedBatches(loader: BatchSource, channel: RankChannel): BatchSource {
  return {
    next: (numSequences) => {
      const batch = loader.next(numSequences);
      channel.share(batch.tokens, batch.tokens.length);
      return batch;
    },
    restore: (state) => loader.restore(state),
    get state(): LoaderState {
      return loader.state;
    },
  };
}

/** The others': rows of `rowTokens` tokens. */
export function receivedBatches(channel: RankChannel, rowTokens: number): BatchSource {
  return {
    next: (numSequences) => {
      const tokens = channel.share(null, numSequences * rowTokens);
      return { tokens, numSequences, width: rowTokens };
    },
    restore: () => {},
    state: NOTHING_DRAWN,
  };
}
