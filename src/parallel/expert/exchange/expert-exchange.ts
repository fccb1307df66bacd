/**
 * @file Tokens to their experts and results back, over two hops each way.
 *
 *   dispatch   rows of bytes (FP8 codes with their scales): rail, then host
 *   combine    BF16 rows: host, then rail, added up on the way
 *
 * In combine a rank first adds what its own experts made of a token (that is the caller's), then
 * the rank on the rail adds what the ranks of its host made, then the token's own rank adds what
 * the hosts made: sums in f32, in the order of ranks and of hosts, rounded to BF16 after each hop.
 * So a token crosses between two hosts once each way, and the result does not depend on timing.
 *
 * The backward of dispatch is combine and the reverse, with the same plan.
 * Sources: DeepSeek-V3 report §3.2.2; counts and formats as in DeepEP's description.
 */
import { assert } from "../../../base/errors.ts";
import { decodeBf16, encodeBf16 } from "../../../numerics/bf16.ts";
import type { Arena } from "../../../tensor/arena.ts";
import { DTYPE_BYTES } from "../../../tensor/dtype.ts";
import type { Tensor } from "../../../tensor/tensor.ts";
import { view } from "../../../tensor/view.ts";
import type { Communicator } from "../../communicator/communicator.ts";
import {
  type ExchangePlan,
  type Hop,
  type Links,
  makeExchangePlan,
  moveRows,
} from "./exchange-plan.ts";
import { type ExpertTopology, expertTopology } from "./topology.ts";

/** Bytes this rank has sent to others, by kind of link. */
export interface LinkBytes {
  acrossHosts: number;
  withinHost: number;
}

export interface ExchangeOptions {
  readonly numExperts: number;
  readonly ranksPerHost: number;
}

export class ExpertExchange {
  readonly topology: ExpertTopology;
  readonly dispatched: LinkBytes = { acrossHosts: 0, withinHost: 0 };
  readonly combined: LinkBytes = { acrossHosts: 0, withinHost: 0 };
  readonly #links: Links;
  readonly #scratch: Arena;

  /** Collective over the ranks that share the experts. */
  constructor(world: Communicator, scratch: Arena, options: ExchangeOptions) {
    this.topology = expertTopology({ ...options, numRanks: world.size });
    const { ranksPerHost } = this.topology;
    const local = world.rank % ranksPerHost;
    const host = (world.rank - local) / ranksPerHost;
    const rail = world.split(local, host, "rail");
    const inHost = world.split(host, local, "host");
    assert(rail !== null && inHost !== null, "every rank is on a rail and on a host");
    this.#links = { world, rail, host: inHost };
    this.#scratch = scratch;
  }

  /** `choice` is [T, K], expert numbers or `NO_EXPERT`; collective. */
  plan(choice: Tensor<"i32">): ExchangePlan {
    return makeExchangePlan(this.topology, this.#links, this.#scratch, choice);
  }

  /** `payload` [T, bytes] to `received` [R, bytes]; collective. */
  dispatch(plan: ExchangePlan, payload: Tensor<"u8">, received: Tensor<"u8">): void {
    assert(payload.rows === plan.numTokens, `${payload.rows} rows for ${plan.numTokens} tokens`);
    assert(received.rows === plan.numReceived, `${received.rows} rows, not ${plan.numReceived}`);
    using _mark = this.#scratch.mark();
    const arrived = this.#scratch.allocate("u8", [plan.numArrived, payload.columns]);
    moveRows(plan.rail, payload, arrived, this.#scratch);
    moveRows(plan.host, arrived, received, this.#scratch);
    count(this.dispatched, plan, payload.columns, sentRows);
  }

  /** `results` [R, D], one row for each received token, to `out` [T, D]; collective. */
  combine(plan: ExchangePlan, results: Tensor<"bf16">, out: Tensor<"bf16">): void {
    assert(results.rows === plan.numReceived, `${results.rows} rows, not ${plan.numReceived}`);
    assert(out.rows === plan.numTokens, `${out.rows} rows for ${plan.numTokens} tokens`);
    using _mark = this.#scratch.mark();
    const arrived = this.#scratch.allocate("bf16", [plan.numArrived, results.columns]);
    this.#addBack(plan.host, results, arrived);
    this.#addBack(plan.rail, arrived, out);
    count(this.combined, plan, results.columns * DTYPE_BYTES.bf16, returnedRows);
  }

  /** A hop in reverse: rows go back to where they came from and are added to their source row. */
  #addBack(hop: Hop, rows: Tensor<"bf16">, out: Tensor<"bf16">): void {
    const { communicator, sent, receiveCounts } = hop;
    const { columns } = rows;
    using _mark = this.#scratch.mark();
    const numBack = sent.reduce((sum, { length }) => sum + length, 0);
    const back = this.#scratch.allocate("bf16", [numBack, columns]);
    communicator
      .allToAll({
        source: rows,
        sendCounts: receiveCounts.map((rowCount) => rowCount * columns),
        target: back,
        receiveCounts: sent.map(({ length }) => length * columns),
      })
      .wait();
    const sums = new Float32Array(out.rows * columns);
    const codes = view(back);
    const values = new Float32Array(columns);
    for (const [place, row] of sent.flat().entries()) {
      decodeBf16(codes.subarray(place * columns, (place + 1) * columns), values);
      const sum = sums.subarray(row * columns, (row + 1) * columns);
      for (let column = 0; column < columns; column++) sum[column]! += values[column]!;
    }
    encodeBf16(sums, view(out));
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
  plan: ExchangePlan,
  rowBytes: number,
  rowsOf: (hop: Hop) => number,
): void {
  bytes.acrossHosts += rowsOf(plan.rail) * rowBytes;
  bytes.withinHost += rowsOf(plan.host) * rowBytes;
}
