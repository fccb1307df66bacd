/**
 * @file Attention over tiles, the processor's and emulated ones, at every edge of a stripe: against
 * the reference, and a row's bits, which are its own whatever stands behind it.
 */
import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { Random } from "../../base/random.ts";
import type { KernelBody } from "../../device/program.ts";
import { mismatch, toleranceFor } from "../../numerics/tolerance.ts";
import { testedTiles } from "../matmul/x64-tiles-test-support.ts";
import { nativeThread } from "../native-thread-test-support.ts";
import { ATTENTION_AT as AT, ATTENTION_SLOTS } from "./contract.ts";
import { createReferenceAttention, createReferenceAttentionBackward } from "./reference.ts";
import { tiledAttentionBody } from "./x64-tiled.ts";

const thread = nativeThread(4 * 2 ** 20);
const { context } = thread;
const { memory } = context;
const UNITS = testedTiles(thread);

const HEADS = 2;
/** Content, RoPE and value columns: whole and half tiles of depth, one and several of results. */
const WIDTHS = [
  [32, 16, 32],
  [16, 16, 16],
  [64, 32, 80],
] as const;
/** A token alone, a stripe and one more or less, several stripes with a ragged end. */
const LENGTHS = [1, 2, 31, 32, 33, 100] as const;
const TOKENS_MAX = 100;
/** Room for all four stripes of the longest sequence at once, for three, for two, for one. */
const ROUND_SCRATCH = [2 ** 20, 210_000, 185_000, 160_000] as const;
/** What outputs are filled with; small, since differences are judged by the largest result. */
const OUTSIDE = 0.5;
const places = ATTENTION_SLOTS.filter((name) => name.endsWith("Offset")).map((name) => ({
  name,
  offset: memory.reserve(TOKENS_MAX * HEADS * 160 * 4),
}));

interface Launch {
  readonly widths: readonly [nope: number, rope: number, value: number];
  readonly seqLength: number;
  readonly scale?: number;
}

/** Columns of each operand; rows are further apart, and what is between them stays as it is. */
function columnsOf([nope, rope, value]: Launch["widths"]): Readonly<Record<string, number>> {
  const [key, query] = [HEADS * (nope + value), HEADS * (nope + rope)];
  return {
    ...{ qOffset: query, kvOffset: key, keyRopeOffset: rope, outOffset: HEADS * value },
    ...{ dOutOffset: HEADS * value, dQOffset: query, dKvOffset: key, dKeyRopeOffset: HEADS * rope },
  };
}

const OUTPUTS = { forward: ["outOffset"], backward: ["dQOffset", "dKvOffset", "dKeyRopeOffset"] };
type Direction = keyof typeof OUTPUTS;

/** Fresh operands, the same for every length; `spoil` may change them. Returns the outputs. */
function launch(
  body: KernelBody,
  direction: Direction,
  { widths, seqLength, scale = 0.2 }: Launch,
  spoil: (operand: string, token: number, values: Float32Array) => void = () => {},
): readonly Float32Array[] {
  const columns = columnsOf(widths);
  const slots = new Float64Array(ATTENTION_SLOTS.length);
  slots.set([1, seqLength, HEADS, ...widths, scale]);
  const rowsOf = (name: string, offset: number): Float32Array[] =>
    Array.from({ length: seqLength }, (_, row) => {
      const stride = columns[name]! + 16;
      return new Float32Array(memory.u8.buffer, offset + row * stride * 4, stride);
    });
  for (const { name, offset } of places) {
    slots.set([offset, columns[name]! + 16], AT[name]);
    const random = new Random(7, name);
    for (const [token, row] of rowsOf(name, offset).entries()) {
      if (OUTPUTS[direction].includes(name)) row.fill(OUTSIDE);
      else for (let at = 0; at < row.length; at++) row[at] = random.normal();
      spoil(name, token, row);
    }
  }
  body(slots, 0, HEADS);
  return places
    .filter(({ name }) => OUTPUTS[direction].includes(name))
    .map(({ name, offset }) => Float32Array.from(rowsOf(name, offset).flatMap((row) => [...row])));
}

function bitsOf(values: Float32Array): Int32Array {
  return new Int32Array(values.buffer);
}

for (const { name, refusal, unit } of UNITS) {
  describe(`causal attention over ${name}`, { skip: refusal || false }, () => {
    for (const direction of ["forward", "backward"] as const) {
      const body = refusal ? null : tiledAttentionBody(context, direction, unit);

      it(`${direction} agrees with the reference and writes nothing else`, () => {
        const reference =
          direction === "forward"
            ? createReferenceAttention("bf16", context)
            : createReferenceAttentionBackward("bf16", context);
        for (const widths of WIDTHS) {
          for (const seqLength of LENGTHS) {
            // Gradients of a single token's scores are zero but for rounding.
            if (direction === "backward" && seqLength === 1) continue;
            const call = { widths, seqLength };
            const [actual, expected] = [body!, reference].map((each) =>
              launch(each, direction, call),
            );
            for (const [index, output] of expected!.entries()) {
              const allowed = toleranceFor("attention", "bf16", seqLength);
              const problem = mismatch(actual![index]!, output, allowed);
              assert.equal(problem, undefined, `${widths.join("+")}, ${seqLength} tokens`);
            }
          }
        }
      });
    }

    it("gives a token the same bits whatever comes after it, also what is no number", () => {
      const body = tiledAttentionBody(context, "forward", unit);
      const [widths, seqLength] = [WIDTHS[0], 100];
      const [whole] = launch(body, "forward", { widths, seqLength });
      const rowLength = whole!.length / seqLength;
      for (const length of [1, 17, 32, 33, 64, 90]) {
        const [part] = launch(body, "forward", { widths, seqLength: length });
        assert.deepEqual(bitsOf(part!), bitsOf(whole!.slice(0, length * rowLength)));
      }
      const spoiledFrom = 70;
      for (const [operand, value] of [
        ["kvOffset", Number.NaN],
        ["kvOffset", Number.POSITIVE_INFINITY],
        ["keyRopeOffset", Number.NaN],
      ] as const) {
        const [spoiled] = launch(body, "forward", { widths, seqLength }, (name, token, row) => {
          if (name === operand && token === spoiledFrom) row.fill(value);
        });
        const before = spoiledFrom * rowLength;
        assert.deepEqual(bitsOf(spoiled!.slice(0, before)), bitsOf(whole!.slice(0, before)));
        assert.ok(!Number.isFinite(spoiled![before]), "the token itself");
      }
    });

    it("gives gradients the same bits in rounds of any number of stripes", () => {
      const call = { widths: WIDTHS[0], seqLength: 100 };
      const [expected, ...others] = ROUND_SCRATCH.map((byteLength) => {
        const scratch = { byteOffset: context.scratch.byteOffset, byteLength };
        return launch(
          tiledAttentionBody({ ...context, scratch }, "backward", unit),
          "backward",
          call,
        );
      });
      for (const actual of others) assert.deepEqual(actual.map(bitsOf), expected!.map(bitsOf));
    });

    it("cuts off weights that are too small for numbers", () => {
      const body = tiledAttentionBody(context, "forward", unit);
      const reference = createReferenceAttention("bf16", context);
      for (const scale of [0.05, 50]) {
        const call = { widths: WIDTHS[0], seqLength: 40, scale };
        const [[actual], [expected]] = [body, reference].map((each) =>
          launch(each, "forward", call),
        ) as [[Float32Array], [Float32Array]];
        const allowed = toleranceFor("attention", "bf16", 40);
        assert.equal(mismatch(actual, expected, allowed), undefined, `scale ${scale}`);
      }
    });
  });
}
