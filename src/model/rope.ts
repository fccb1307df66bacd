/**
 * @file RoPE tables and positions: what the rope kernel needs to turn the pairs of a head's last
 * columns.
 *
 *     cosTable_PR[p, 2i] = cosTable_PR[p, 2i+1] = c · cos(p · frequency_i)
 *     sinTable_PR[p, 2i] = −c · sin(p · frequency_i),  sinTable_PR[p, 2i+1] = +c · sin(p ·
 *     frequency_i)
 *
 *   P positions, R columns, c the multiplier of YaRN (1 without). Angles are computed in f64.
 *
 * Rows of the query are turned for all heads at once: a [T, H·W] matrix seen as [T·H, W].
 */
import { roundUp } from "../base/integers.ts";
import type { Device } from "../device/device.ts";
import { rope } from "../kernels/rope/contract.ts";
import type { Arena } from "../tensor/arena.ts";
import type { FloatType } from "../tensor/dtype.ts";
import type { Tensor } from "../tensor/tensor.ts";
import { view } from "../tensor/view.ts";
import type { ModelConfig } from "./config.ts";
import { ropeFrequencies, rotaryMultiplier } from "./yarn.ts";

export interface RopeTables {
  readonly cosTable: Tensor<FloatType>;
  readonly sinTable: Tensor<FloatType>;
}

/** Tables and positions of one pass. */
export interface RotaryPositions extends RopeTables {
  /** Position of each token, [1, T]. */
  readonly ofTokens: Tensor<"i32">;
}

/** Allocate and fill the tables of positions 0..numPositions−1. */
export function makeRopeTables(
  arena: Arena,
  config: ModelConfig,
  numPositions: number,
  floatType: FloatType,
): RopeTables {
  const columns = config.qkRopeHeadDim;
  const frequencies = ropeFrequencies(config);
  const multiplier = rotaryMultiplier(config.ropeScaling);
  const cosTable = arena.allocate(floatType, [numPositions, columns]);
  const sinTable = arena.allocate(floatType, [numPositions, columns]);
  const cosines = view(cosTable);
  const sines = view(sinTable);
  for (let position = 0; position < numPositions; position++) {
    frequencies.forEach((frequency, pair) => {
      const at = position * columns + 2 * pair;
      const cosine = multiplier * Math.cos(position * frequency);
      const sine = multiplier * Math.sin(position * frequency);
      cosines[at] = cosine;
      cosines[at + 1] = cosine;
      sines[at] = -sine;
      sines[at + 1] = sine;
    });
  }
  return { cosTable, sinTable };
}

/** Tables that grow with the longest sequence seen. */
export class RopeTableCache {
  readonly #arena: Arena;
  readonly #config: ModelConfig;
  readonly #floatType: FloatType;
  #tables: RopeTables | null = null;

  constructor(arena: Arena, config: ModelConfig, floatType: FloatType) {
    this.#arena = arena;
    this.#config = config;
    this.#floatType = floatType;
  }

  /** Tables of at least `numPositions` rows. */
  atLeast(numPositions: number): RopeTables {
    if (this.#tables === null || this.#tables.cosTable.rows < numPositions) {
      // Twice as many as before, at least: old tables stay where they are.
      const rows = Math.max(roundUp(numPositions, 256), 2 * (this.#tables?.cosTable.rows ?? 0));
      this.#tables = makeRopeTables(this.#arena, this.#config, rows, this.#floatType);
    }
    return this.#tables;
  }
}

/** Positions of `numSequences` sequences that each start at 0. */
export function makePositions(
  arena: Arena,
  tables: RopeTables,
  { numSequences, seqLength }: { readonly numSequences: number; readonly seqLength: number },
): RotaryPositions {
  const ofTokens = arena.allocate("i32", [1, numSequences * seqLength]);
  const positions = { ...tables, ofTokens };
  fillPositions({ positions, seqLength });
  return positions;
}

/** The positions of a pass, written anew. */
export function fillPositions({
  positions,
  seqLength,
}: {
  readonly positions: RotaryPositions;
  readonly seqLength: number;
}): void {
  const tokens = view(positions.ofTokens);
  for (let token = 0; token < tokens.length; token++) tokens[token] = token % seqLength;
}

/**
 * Turn the rows of `x`, one a token or one a head of a token; "backward" is the transposed turn.
 */
export function turn(
  device: Device,
  positions: RotaryPositions,
  x: Tensor<FloatType>,
  direction: "forward" | "backward",
): void {
  const { cosTable, sinTable, ofTokens } = positions;
  rope(device, {
    ...{ x, positions: ofTokens, cosTable, sinTable },
    inverse: direction === "backward",
  });
}
