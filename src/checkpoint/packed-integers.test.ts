/** @file Packed integers are those of compressed-tensors, and come back as they were written. */
import assert from "node:assert/strict";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, describe, it } from "node:test";
import { Random } from "../base/random.ts";
import { toBf16 } from "../numerics/bf16.ts";
import { INTEGER_BITS, makeCodedRow, quantizeRow } from "../numerics/integer-groups.ts";
import { packedWeightSources, readPackedRows } from "./packed-integers.ts";
import { openSafetensors, writeSafetensors } from "./safetensors.ts";
import type { TensorSource } from "./tensors.ts";

let folder: string;

before(() => {
  folder = mkdtempSync(join(tmpdir(), "hadal-packed-"));
});

after(() => rmSync(folder, { recursive: true }));

const bytesOf = (values: ArrayBufferView): Uint8Array => new Uint8Array(values.buffer);

/** A weight of one row and two values, in words written by hand. */
function byHand(packed: number, changes: Partial<Record<string, TensorSource>> = {}): string {
  const path = join(folder, `${packed}.safetensors`);
  const sources: TensorSource[] = [
    { name: "w_packed", dtype: "I32", shape: [1, 1], data: () => bytesOf(Int32Array.of(packed)) },
    {
      name: "w_scale",
      dtype: "BF16",
      shape: [1, 1],
      data: () => bytesOf(Uint16Array.of(toBf16(0.5))),
    },
    { name: "w_shape", dtype: "I64", shape: [2], data: () => bytesOf(BigInt64Array.of(1n, 2n)) },
  ];
  writeSafetensors(
    path,
    sources.map((source) => changes[source.name] ?? source),
  );
  return path;
}

const RULE = { bits: 8, groupSize: 32, asymmetric: false } as const;
const SHAPE = { rows: 1, columns: 2 };

describe("packed integers", () => {
  it("have the first code lowest, each with half the range added", () => {
    // The example of the compressor's own documentation: 1 and 2 are 129 and 130, and 33409.
    using file = openSafetensors(byHand(33409));
    const [row] = readPackedRows(file, "w", SHAPE, RULE);
    assert.deepEqual([...row!.codes], [1, 2]);
    assert.deepEqual([...row!.scales], [0.5]);
  });

  it("read −128 as −127", () => {
    using file = openSafetensors(byHand(0x8100));
    const [row] = readPackedRows(file, "w", SHAPE, RULE);
    assert.deepEqual([...row!.codes], [-127, 1]);
  });

  for (const bits of INTEGER_BITS) {
    for (const asymmetric of [false, true]) {
      it(`come back: ${bits} bits, ${asymmetric ? "asymmetric" : "symmetric"}`, () => {
        const seed = Date.now() % 2 ** 31;
        const random = new Random(seed, "packed");
        const rule = { bits, groupSize: 64, asymmetric } as const;
        const shape = { rows: 13, columns: 150 };
        const values = Float32Array.from({ length: 13 * 150 }, () => random.normal());
        const path = join(folder, `${bits}${asymmetric}.safetensors`);
        writeSafetensors(
          path,
          packedWeightSources("w", shape, () => values, rule),
        );
        using file = openSafetensors(path);
        let index = 0;
        for (const row of readPackedRows(file, "w", shape, rule)) {
          const expected = makeCodedRow(shape.columns, rule.groupSize);
          quantizeRow(values.subarray(index * 150, (index + 1) * 150), rule, expected);
          assert.deepEqual(row, expected, `row ${index}, seed ${seed}`);
          index++;
        }
        assert.equal(index, shape.rows);
      });
    }
  }

  it("are refused in another shape, or with scales that bf16 does not hold", () => {
    const read = (path: string, shape = SHAPE): unknown[] => {
      using file = openSafetensors(path);
      return [...readPackedRows(file, "w", shape, RULE)];
    };
    const path = byHand(7);
    assert.throws(() => read(path, { rows: 1, columns: 3 }), /w_shape says \[1,2\]/);
    assert.throws(() => read(path, { rows: 2, columns: 2 }), { code: "checkpoint.shape" });
    const fine = byHand(8, {
      w_scale: {
        name: "w_scale",
        dtype: "F32",
        shape: [1, 1],
        data: () => bytesOf(Float32Array.of(0.1)),
      },
    });
    assert.throws(() => read(fine), { code: "checkpoint.unsupported" });
  });
});
