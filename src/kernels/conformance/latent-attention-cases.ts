/** @file Conformance cases of attention over a latent cache in blocks. */
import { ceilDiv } from "../../base/integers.ts";
import { toleranceFor } from "../../numerics/tolerance.ts";
import { fillFrom } from "../../tensor/view.ts";
import {
  LATENT_BLOCK_TOKENS,
  type LatentTokens,
  latentAttention,
  planLatentTiles,
} from "../latent-attention/contract.ts";
import type { ConformanceCase } from "./conformance.ts";
import type { TensorMaker } from "./tensor-maker.ts";

interface LatentSize {
  readonly title: string;
  readonly numHeads: number;
  readonly latent: number;
  readonly key: number;
  /** Tokens before, and new tokens, of each sequence. */
  readonly sequences: readonly (readonly [cached: number, count: number])[];
  /** A latent and a key element of sequence 0 by position, where it is not random. */
  readonly rowValue?: (position: number) => number | undefined;
}

const SIZES: readonly LatentSize[] = [
  { title: "a single token", numHeads: 1, latent: 3, key: 2, sequences: [[0, 1]] },
  {
    title: "decoding at the edges of a block, beside a prompt",
    numHeads: 3,
    latent: 24,
    key: 7,
    sequences: [
      [62, 1],
      [63, 1],
      [64, 1],
      [0, 70],
      [127, 2],
    ],
  },
  {
    title: "the edges of a segment, more heads than a tile has rows",
    numHeads: 65,
    latent: 20,
    key: 8,
    sequences: [
      [511, 1],
      [512, 1],
      [1030, 1],
    ],
  },
  { title: "a prompt across segments", numHeads: 2, latent: 16, key: 4, sequences: [[480, 60]] },
  {
    title: "latents and a key that are not finite, amid a tile",
    numHeads: 2,
    latent: 16,
    key: 4,
    sequences: [
      [500, 40],
      [3, 9],
    ],
    rowValue: (position) =>
      ({ 505: Number.POSITIVE_INFINITY, 520: Number.NaN, 530: Number.NaN })[position],
  },
  {
    title: "decoding over whole tiles of columns, at the edges of a block",
    numHeads: 8,
    latent: 64,
    key: 16,
    sequences: [
      [0, 1],
      [14, 1],
      [62, 1],
      [63, 1],
      [64, 1],
      [300, 2],
    ],
  },
  { title: "a prompt over whole tiles", numHeads: 3, latent: 32, key: 8, sequences: [[120, 75]] },
  {
    title: "more heads than a tile has rows, several tiles of columns and of keys",
    numHeads: 70,
    latent: 160,
    key: 36,
    sequences: [
      [190, 1],
      [5, 2],
    ],
  },
  {
    title: "latents and a key that are not numbers, amid whole tiles",
    numHeads: 4,
    latent: 32,
    key: 16,
    sequences: [
      [100, 40],
      [3, 9],
    ],
    // Not infinities: a score of −∞ may leave the other columns numbers, or not.
    rowValue: (position) => ([105, 120, 130].includes(position) ? Number.NaN : undefined),
  },
];

/** Blocks in an order that is nobody's, every one of its own. */
function makeTables(make: TensorMaker, { sequences }: LatentSize) {
  const counts = sequences.map(([cached, count]) => ceilDiv(cached + count, LATENT_BLOCK_TOKENS));
  const numBlocks = counts.reduce((sum, count) => sum + count, 0) + 3;
  const free = Array.from({ length: numBlocks }, (_, index) => index);
  make.random.shuffle(free);
  const blocks = counts.map((count) => free.splice(0, count));
  const columns = Math.max(...counts);
  const draw = (sequence: number, index: number): number => blocks[sequence]![index] ?? 0;
  const tables = make.filled("i32", [sequences.length, columns], draw);
  return { numBlocks, blocks, tables };
}

function prepareCase(make: TensorMaker, size: LatentSize, dtype: "f32" | "bf16") {
  const { numHeads, latent, key, sequences, rowValue } = size;
  const { numBlocks, blocks, tables } = makeTables(make, size);
  const valueAt = (row: number, column: number): number => {
    const block = Math.floor(row / LATENT_BLOCK_TOKENS);
    const sequence = blocks.findIndex((of) => of.includes(block));
    const [cached, count] = sequences[sequence] ?? [0, 0];
    const position =
      (blocks[sequence]?.indexOf(block) ?? 0) * LATENT_BLOCK_TOKENS + (row % LATENT_BLOCK_TOKENS);
    const value = make.random.normal();
    // What no token has written is poison.
    if (position >= cached + count) return Number.NaN;
    const special = sequence === 0 && column === 1 ? rowValue?.(position) : undefined;
    return special ?? value;
  };
  const numRows = numBlocks * LATENT_BLOCK_TOKENS;
  const latents = make.filled(dtype, [numRows, latent], valueAt);
  const keys = make.filled("f32", [numRows, key], valueAt);
  let firstToken = 0;
  const tokens = sequences.map(([position, count]): LatentTokens => {
    const of = { firstToken, count, position };
    firstToken += count;
    return of;
  });
  const query = make.normal("f32", [firstToken * numHeads, latent + key]);
  const out = make.poisoned("f32", [firstToken * numHeads, latent]);
  const plan = planLatentTiles(tokens, { numHeads, numThreads: 2 });
  const tiles = make.poisoned("i32", [plan.length / 4, 4], { contiguous: true });
  fillFrom(tiles, plan);
  const call = {
    numHeads,
    scale: (latent + key) ** -0.5,
    query,
    latents,
    keys,
    tables,
    tiles,
    out,
  };
  return { call, out };
}

function latentCase(size: LatentSize, dtype: "f32" | "bf16"): ConformanceCase {
  const keysMost = Math.max(...size.sequences.map(([cached, count]) => cached + count));
  return {
    kernel: `latentAttention/${dtype}`,
    title: size.title,
    // bf16 is what the latents are stored in; both sides read the same.
    tolerance: toleranceFor("attention", "f32", keysMost),
    prepare(make): ReturnType<ConformanceCase["prepare"]> {
      const { call, out } = prepareCase(make, size, dtype);
      return { run: (device) => latentAttention(device, call), outputs: { out } };
    },
  };
}

export const LATENT_ATTENTION_CASES: readonly ConformanceCase[] = SIZES.flatMap((size) => [
  latentCase(size, "f32"),
  latentCase(size, "bf16"),
]);
