/**
 * @file Ranks that route random tokens, exchange them, and check what came against what every rank
 * can compute by itself from the seed. A rank's result: what was wrong, and the bytes it sent.
 */
import { Random } from "../../../base/random.ts";
import { CpuMemory } from "../../../device/cpu/memory.ts";
import { roundToBf16, toBf16 } from "../../../numerics/bf16.ts";
import { E4M3 } from "../../../numerics/fp8.ts";
import { ACTIVATION_AMAX_MIN, quantize, tileGrid } from "../../../numerics/scales.ts";
import { Arena } from "../../../tensor/arena.ts";
import type { Tensor } from "../../../tensor/tensor.ts";
import { view } from "../../../tensor/view.ts";
import type { RankContext } from "../../communicator/rank-program.ts";
import { finish } from "../../communicator/work.ts";
import { type ExchangePlan, NO_EXPERT } from "./exchange-plan.ts";
import { type ChunkRows, ExpertExchange, type LinkBytes } from "./expert-exchange.ts";

export interface ExchangeInput {
  readonly seed: number;
  readonly ranksPerHost: number;
  readonly expertsPerRank: number;
  readonly numChosen: number;
  readonly hiddenDim: number;
  readonly tokensOfRank: readonly number[];
  /** The one rank that has tokens, if that is agreed on. */
  readonly source?: number;
}

export interface ExchangeReport {
  readonly problems: readonly string[];
  readonly chunkRows: ChunkRows;
  readonly dispatched: LinkBytes;
  readonly combined: LinkBytes;
  readonly remoteHosts: number;
}

/** What a rank's tokens choose: distinct experts, sometimes none. */
export function choicesOf(input: ExchangeInput, rank: number, numRanks: number): number[][] {
  const random = new Random(input.seed, `choices ${rank}`);
  const numExperts = numRanks * input.expertsPerRank;
  return Array.from({ length: input.tokensOfRank[rank]! }, () => {
    const experts = Array.from({ length: numExperts }, (_, expert) => expert);
    random.shuffle(experts);
    return experts.slice(0, input.numChosen).map((e) => (random.below(3) === 0 ? NO_EXPERT : e));
  });
}

/** The quantised values of a rank's tokens. */
function tokensOf({ seed, hiddenDim, tokensOfRank }: ExchangeInput, rank: number) {
  const random = new Random(seed, `tokens ${rank}`);
  const rows = tokensOfRank[rank]!;
  const values = Float32Array.from({ length: rows * hiddenDim }, () => random.normal());
  const grid = tileGrid(rows, hiddenDim);
  const codes = new Uint8Array(rows * hiddenDim);
  const scales = new Float32Array(rows * (hiddenDim / 128));
  const rule = { format: E4M3, amaxMin: ACTIVATION_AMAX_MIN, powerOfTwo: true };
  quantize(values, grid, rule, { codes, scales });
  return { codes, scales };
}

/** What an expert makes of a token in this test: some numbers of both. */
function expertOutput(expert: number, code: number): number {
  return roundToBf16(((expert * 37 + code * 11) % 256) / 16 - 7);
}

export async function runRank(context: RankContext): Promise<ExchangeReport> {
  const input = context.input as ExchangeInput;
  const { ranksPerHost, expertsPerRank, numChosen, hiddenDim, source } = input;
  const memory = CpuMemory.create(null);
  const world = await context.join(memory);
  const arena = new Arena(memory, "exchange");
  const numExperts = world.size * expertsPerRank;
  const exchange = new ExpertExchange(world, { numExperts, ranksPerHost, source });
  const arenas = { out: arena, scratch: new Arena(memory, "scratch") };
  const problems: string[] = [];
  exchange.tune({ numTokens: 40, rowBytes: 16 }, arenas.scratch, shortestFirst());
  const { chunkRows } = exchange;
  const mine = choicesOf(input, world.rank, world.size);
  const choice = arena.allocate("i32", [mine.length, numChosen]);
  view(choice).set(mine.flat());

  const own = tokensOf(input, world.rank);
  const tileColumns = hiddenDim / 128;
  const codes = arena.allocate("u8", [mine.length, hiddenDim]);
  const scales = arena.allocate("f32", [mine.length, tileColumns]);
  view(codes).set(own.codes);
  view(scales).set(own.scales);
  const announced = exchange.announce(choice, arenas.scratch);
  const { plan, parts } = finish(exchange.dispatch(announced, [codes, scales], arenas));
  const [gotCodes, gotScales] = parts as [Tensor<"u8">, Tensor<"f32">];
  // A sender may use its memory again: what came lies elsewhere, also where one rank is all.
  if (gotCodes.byteOffset === codes.byteOffset) problems.push("what came is what was sent");
  const [again] = finish(exchange.dispatchAgain(plan, [codes], arenas));
  if (!same(view(again as Tensor<"u8">), view(gotCodes))) problems.push("another payload");

  problems.push(...findWrongRows(input, world.rank, { plan, codes: gotCodes, scales: gotScales }));
  const results = arena.allocate("bf16", [plan.numReceived, hiddenDim]);
  const received32 = view(gotCodes);
  for (let row = 0; row < plan.numReceived; row++) {
    const experts = plan.localExperts.subarray(row * numChosen, (row + 1) * numChosen);
    for (let column = 0; column < hiddenDim; column++) {
      const at = row * hiddenDim + column;
      let sum = 0;
      for (const expert of experts) {
        if (expert === NO_EXPERT) continue;
        sum = Math.fround(
          sum + expertOutput(world.rank * expertsPerRank + expert, received32[at]!),
        );
      }
      view(results)[at] = toBf16(sum);
    }
  }
  const out = arena.allocate("bf16", [mine.length, hiddenDim]);
  finish(exchange.combine(plan, [{ rows: results, out }], arenas.scratch));
  for (const [token, chosen] of mine.entries()) {
    const wrong = Array.from({ length: hiddenDim }, (_, column) => column).find((column) => {
      const code = own.codes[token * hiddenDim + column]!;
      const sum = combinedInOneProcess(chosen, code, input);
      return view(out)[token * hiddenDim + column] !== toBf16(sum);
    });
    if (wrong !== undefined) problems.push(`token ${token}, column ${wrong}: the sum`);
  }
  const remoteHosts = countRemoteHosts(input, world.rank, mine);
  const { dispatched, combined } = exchange;
  return { problems, chunkRows, dispatched, combined, remoteHosts };
}

/** A clock on which, of two candidates that take turns, the second takes longer. */
function shortestFirst(): () => number {
  let [calls, time] = [0, 0];
  return () => {
    time += [0, 1, 0, 2][calls++ % 4]!;
    return time;
  };
}

/** What differs from what every rank can work out about the tokens that should have come. */
function findWrongRows(
  input: ExchangeInput,
  me: number,
  got: {
    readonly plan: ExchangePlan;
    readonly codes: Tensor<"u8">;
    readonly scales: Tensor<"f32">;
  },
): string[] {
  const { ranksPerHost, expertsPerRank, numChosen, hiddenDim, tokensOfRank } = input;
  const tileColumns = hiddenDim / 128;
  const { plan, codes, scales } = got;
  const problems: string[] = [];
  // Tokens come by local index of their rank, then by its host, then in their order.
  const expected = tokensOfRank
    .map((_, rank) => rank)
    .toSorted((a, b) => (a % ranksPerHost) - (b % ranksPerHost) || a - b)
    .flatMap((rank) => {
      const tokens = tokensOf(input, rank);
      return choicesOf(input, rank, tokensOfRank.length).flatMap((chosen, token) => {
        const local = chosen.map((expert) =>
          expert !== NO_EXPERT && Math.floor(expert / expertsPerRank) === me
            ? expert % expertsPerRank
            : NO_EXPERT,
        );
        const first = token * hiddenDim;
        const row = tokens.codes.subarray(first, first + hiddenDim);
        const tiles = tokens.scales.subarray(token * tileColumns, (token + 1) * tileColumns);
        return local.some((expert) => expert !== NO_EXPERT) ? [{ local, row, tiles }] : [];
      });
    });
  if (expected.length !== plan.numReceived) problems.push(`${plan.numReceived} rows received`);
  for (const [row, token] of expected.entries()) {
    const local = plan.localExperts.subarray(row * numChosen, (row + 1) * numChosen);
    if (!same(local, token.local)) problems.push(`row ${row}: experts ${local}`);
    if (!same(view(codes).subarray(row * hiddenDim, (row + 1) * hiddenDim), token.row)) {
      problems.push(`row ${row}: codes`);
    }
    if (!same(view(scales).subarray(row * tileColumns, (row + 1) * tileColumns), token.tiles)) {
      problems.push(`row ${row}: scales`);
    }
  }
  return problems;
}

function same(a: ArrayLike<number>, b: ArrayLike<number>): boolean {
  return `${[...Array.from(a)]}` === `${[...Array.from(b)]}`;
}

/** Crossings to other hosts that the choices call for. */
function countRemoteHosts(input: ExchangeInput, me: number, mine: readonly number[][]): number {
  const { expertsPerRank, ranksPerHost } = input;
  const hostOf = (expert: number): number => Math.floor(expert / expertsPerRank / ranksPerHost);
  const myHost = Math.floor(me / ranksPerHost);
  return mine.reduce((sum, chosen) => {
    const hosts = new Set(chosen.filter((expert) => expert !== NO_EXPERT).map(hostOf));
    return sum + [...hosts].filter((host) => host !== myHost).length;
  }, 0);
}

/** The same sums in the same order: experts of a rank, ranks of a host, hosts. */
function combinedInOneProcess(
  chosen: readonly number[],
  code: number,
  input: ExchangeInput,
): number {
  const { expertsPerRank, ranksPerHost } = input;
  const byHost = new Map<number, Map<number, number>>();
  for (const expert of chosen) {
    if (expert === NO_EXPERT) continue;
    const rank = Math.floor(expert / expertsPerRank);
    const host = Math.floor(rank / ranksPerHost);
    const ranks = byHost.get(host) ?? new Map<number, number>();
    byHost.set(host, ranks);
    ranks.set(rank, Math.fround((ranks.get(rank) ?? 0) + expertOutput(expert, code)));
  }
  const inOrder = <T>(entries: Iterable<[number, T]>): T[] =>
    [...entries].toSorted(([a], [b]) => a - b).map(([, value]) => value);
  const hosts = inOrder(byHost).map((ranks) =>
    roundToBf16(inOrder(ranks).reduce((sum, value) => Math.fround(sum + roundToBf16(value)), 0)),
  );
  return roundToBf16(hosts.reduce((sum, value) => Math.fround(sum + value), 0));
}
