/**
 * @file Tokens to their experts and results back, over two hops each way.
 *
 *   dispatch   rows of any format (FP8 codes, their scales, routing weights): rail, then host
 *   combine    rows of BF16 or floats: host, then rail, added up on the way
 *
 * In combine a rank first adds what its own experts made of a token (that is the caller's), then
 * the rank on the rail adds what the ranks of its host made, then the token's own rank adds what
 * the hosts made: sums of BF16 in f32, in the order of ranks and of hosts, rounded after each hop.
 * So a token crosses between two hosts once each way, and the result does not depend on timing.
 *
 * The backward of dispatch is combine and the reverse, with the same plan. Everything is work that
 * yields what it waits for, so that a caller computes meanwhile; what is interleaved with it uses
 * other arenas. Sources: DeepSeek-V3 report §3.2.2; counts and formats as in DeepEP's description.
 */
import { assert, defined } from "../../../base/errors.ts";
import type { Arena } from "../../../tensor/arena.ts";
import type { Tensor } from "../../../tensor/tensor.ts";
import type { Communicator } from "../../communicator/communicator.ts";
import type { Work } from "../../communicator/work.ts";
import {
  type Counting,
  countTokens,
  type ExchangePlan,
  type Links,
  localExpertsOf,
  planHost,
  planRail,
  receivedBy,
} from "./exchange-plan.ts";
import {
  addBack,
  allocateLike,
  type Hop,
  moveRows,
  rowBytesOf,
  type SummedRows,
  sumOf,
} from "./hop.ts";
import { type ExpertTopology, expertTopology } from "./topology.ts";
import { type ExchangeSize, tuneChunkRows } from "./tune-chunks.ts";

/** Rows of one message, across hosts and within them. */
export interface ChunkRows {
  readonly rail: number;
  readonly host: number;
}

/** Until it is tuned. */
const DEFAULT_CHUNK_ROWS = 256;

/** Bytes this rank has sent to others, by kind of link. */
export interface LinkBytes {
  acrossHosts: number;
  withinHost: number;
}

export interface ExchangeOptions {
  /** Physical ones: replicas count. */
  readonly numExperts: number;
  readonly ranksPerHost: number;
  /** The one rank that has tokens; all may have some if left out. */
  readonly source?: number | undefined;
}

/** Where the tokens of this rank want to go; how many come from the others is on its way. */
export interface Announced extends Counting {
  readonly choice: Tensor<"i32">;
}

/** Tokens that have come to their experts. */
export interface Dispatched {
  readonly plan: ExchangePlan;
  /** The parts that were sent, a row for each token received. */
  readonly parts: readonly Tensor[];
}

/** Where an exchange takes memory: for what it returns, and for its own use until it has. */
export interface ExchangeArenas {
  readonly out: Arena;
  readonly scratch: Arena;
}

/** How rows go; the second hop may follow from what has come by the first. */
interface Route {
  readonly rail: Hop | null;
  readonly numArrived: number;
  readonly hasHost: boolean;
  readonly hostOf: (arrived: readonly Tensor[]) => Hop;
  readonly numReceived: number;
}

export class ExpertExchange {
  readonly topology: ExpertTopology;
  readonly dispatched: LinkBytes = { acrossHosts: 0, withinHost: 0 };
  readonly combined: LinkBytes = { acrossHosts: 0, withinHost: 0 };
  readonly #links: Links;
  readonly #source: number | undefined;
  readonly #tuned = new Map<string, ChunkRows>();
  #chunkRows: ChunkRows = { rail: DEFAULT_CHUNK_ROWS, host: DEFAULT_CHUNK_ROWS };

  /** Collective over the ranks that share the experts. */
  constructor(world: Communicator, options: ExchangeOptions) {
    const { numExperts, ranksPerHost, source } = options;
    this.topology = expertTopology({ numExperts, ranksPerHost, numRanks: world.size });
    this.#source = source;
    const local = world.rank % ranksPerHost;
    const host = (world.rank - local) / ranksPerHost;
    const rail = world.split(local, host, "rail");
    const inHost = world.split(host, local, "host");
    assert(rail !== null && inHost !== null, "every rank is on a rail and on a host");
    this.#links = { world, rail, host: inHost };
  }

  /** Rows in one message. */
  get chunkRows(): ChunkRows {
    return this.#chunkRows;
  }

  /** Collective: measure what suits exchanges of this size, once a size. */
  tune(size: ExchangeSize, scratch: Arena, now: () => number): void {
    const key = `${size.numTokens} ${size.rowBytes}`;
    const { rail, host } = this.#links;
    const chunkRows = this.#tuned.get(key) ?? {
      rail: tuneChunkRows(rail, size, scratch, now),
      host: tuneChunkRows(host, size, scratch, now),
    };
    this.#tuned.set(key, chunkRows);
    this.#chunkRows = chunkRows;
  }

  /** Bytes sent since the last call, both ways together. */
  takeBytes(): LinkBytes {
    const { dispatched, combined } = this;
    const bytes = {
      acrossHosts: dispatched.acrossHosts + combined.acrossHosts,
      withinHost: dispatched.withinHost + combined.withinHost,
    };
    for (const counted of [dispatched, combined]) {
      counted.acrossHosts = 0;
      counted.withinHost = 0;
    }
    return bytes;
  }

  /** This rank's number among those that share the experts. */
  get rank(): number {
    return this.#links.world.rank;
  }

  /**
   * Collective: tells where tokens want to go, [T, K] expert numbers or `NO_EXPERT`. What is done
   * before they are dispatched hides how long that takes.
   */
  announce(choice: Tensor<"i32">, scratch: Arena): Announced {
    const tokens = { choice, source: this.#source, scratch };
    return { choice, ...countTokens(this.topology, this.#links.world, tokens) };
  }

  /**
   * Collective: every part's rows, one a token, to the ranks of the token's experts. What came is
   * allocated from `arenas.out`.
   */
  *dispatch(
    announced: Announced,
    parts: readonly Tensor[],
    arenas: ExchangeArenas,
  ): Work<Dispatched> {
    const { topology } = this;
    const links = this.#links;
    const { choice } = announced;
    const counts = announced.counts();
    const numReceived = receivedBy(topology, links.world.rank, counts);
    const rail = links.rail.size === 1 ? null : planRail(topology, links, counts, choice);
    const sent = [choice, ...parts];
    const route: Route = {
      rail,
      numArrived: rail === null ? choice.rows : sumOf(rail.receiveCounts),
      // A rank alone goes this way too: what comes is never what was sent.
      hasHost: links.host.size > 1 || rail === null,
      hostOf: ([arrived]) => planHost(topology, links, counts, arrived as Tensor<"i32">),
      numReceived,
    };
    const { host, received } = yield* this.#send(route, sent, arenas);
    announced.operation.wait();
    const [cameChoice, ...came] = received;
    const localExperts = localExpertsOf(topology, links.world.rank, cameChoice as Tensor<"i32">);
    const { numArrived } = route;
    const plan = { numTokens: choice.rows, rail, numArrived, host, numReceived, localExperts };
    return { plan, parts: came };
  }

  /** Collective: more rows of the same tokens, the same way. */
  *dispatchAgain(
    plan: ExchangePlan,
    parts: readonly Tensor[],
    arenas: ExchangeArenas,
  ): Work<readonly Tensor[]> {
    for (const { rows } of parts) {
      assert(rows === plan.numTokens, `${rows} rows for ${plan.numTokens} tokens`);
    }
    const { host } = plan;
    const route = { ...plan, hasHost: host !== null, hostOf: () => defined(host, "the hop") };
    return (yield* this.#send(route, parts, arenas)).received;
  }

  *#send(
    route: Route,
    parts: readonly Tensor[],
    { out, scratch }: ExchangeArenas,
  ): Work<{ readonly host: Hop | null; readonly received: readonly Tensor[] }> {
    const { rail, hasHost } = route;
    // Before the mark: `out` may be scratch itself.
    const received = allocateLike(out, parts, route.numReceived);
    using _mark = scratch.mark();
    let arrived = parts;
    if (rail !== null) {
      arrived = hasHost ? allocateLike(scratch, parts, route.numArrived) : received;
      count(this.dispatched, "acrossHosts", sentRows(rail), parts);
      yield* moveRows(rail, parts, arrived, { scratch, chunkRows: this.#chunkRows.rail });
    }
    if (!hasHost) return { host: null, received };
    const host = route.hostOf(arrived);
    count(this.dispatched, "withinHost", sentRows(host), parts);
    yield* moveRows(host, arrived, received, { scratch, chunkRows: this.#chunkRows.host });
    return { host, received };
  }

  /** Collective: sums of each part's rows, one a received token, back on the tokens' own ranks. */
  *combine(plan: ExchangePlan, parts: readonly SummedRows[], scratch: Arena): Work<void> {
    for (const { rows, out } of parts) {
      assert(rows.rows === plan.numReceived, `${rows.rows} rows, not ${plan.numReceived}`);
      assert(out.rows === plan.numTokens, `${out.rows} rows for ${plan.numTokens} tokens`);
    }
    const { host, rail } = plan;
    using _mark = scratch.mark();
    const sent = parts.map(({ rows }) => rows);
    const halfway = parts.map(({ rows, out }): SummedRows => {
      if (rail === null) return { rows, out };
      return { rows, out: scratch.allocate(rows.dtype, [plan.numArrived, rows.columns]) };
    });
    if (host !== null) {
      yield* addBack(host, halfway, scratch);
      count(this.combined, "withinHost", returnedRows(host), sent);
    }
    if (rail === null) return;
    const arrived = parts.map(({ rows, out }, index) => ({
      rows: host === null ? rows : halfway[index]!.out,
      out,
    }));
    yield* addBack(rail, arrived, scratch);
    count(this.combined, "acrossHosts", returnedRows(rail), sent);
  }
}

/** Rows that leave this rank for others in a hop, forward and in reverse. */
function sentRows({ communicator, sent }: Hop): number {
  return sent.reduce(
    (sum, rows, member) => sum + (member === communicator.rank ? 0 : rows.length),
    0,
  );
}

function returnedRows({ communicator, receiveCounts }: Hop): number {
  return receiveCounts.reduce(
    (sum, rows, member) => sum + (member === communicator.rank ? 0 : rows),
    0,
  );
}

function count(
  bytes: LinkBytes,
  link: keyof LinkBytes,
  rows: number,
  parts: readonly Tensor[],
): void {
  bytes[link] += rows * rowBytesOf(parts);
}
