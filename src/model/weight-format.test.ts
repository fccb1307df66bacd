/** @file How weights are kept: its notation, and the config.json that says it. */
import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { declareParameters } from "./parameter-declarations.ts";
import { storedWeightFormat, writeQuantization } from "./quantization-config.ts";
import { TINY } from "./test-support.ts";
import { codedShapeOf, parseWeightFormat, weightNotation } from "./weight-format.ts";

const INT4 = { bits: 4, groupSize: 64, asymmetric: true } as const;

describe("the format that weights are kept in", () => {
  it("is noted in one word, which means the same again", () => {
    for (const notation of ["bf16", "fp8", "int8:g32", "int8:g128a", "int4:g64", "int4:g32a"]) {
      const format = parseWeightFormat(notation);
      assert.ok(format !== "f32");
      assert.equal(weightNotation(format), notation);
    }
    assert.deepEqual(parseWeightFormat("int4:g64a"), INT4);
    assert.deepEqual(parseWeightFormat("int8"), { bits: 8, groupSize: 32, asymmetric: false });
    assert.deepEqual(parseWeightFormat("int8:a"), { bits: 8, groupSize: 32, asymmetric: true });
  });

  it("is refused in other words", () => {
    for (const notation of ["int5", "int4:", "int4:g16", "int4:g64b", "INT8", "q8_0", ""]) {
      assert.throws(() => parseWeightFormat(notation), { code: "usage.weights" }, notation);
    }
  });

  it("leaves alone what is looked up, chooses experts, or is absorbed; the head has 8 bits", () => {
    const codes = declareParameters({ ...TINY, numMtpModules: 1 }).map((declaration) => {
      const shape = codedShapeOf(declaration, TINY.numRoutedExperts, INT4);
      return [declaration.name, shape?.format ?? null] as const;
    });
    const plain = codes.filter(([, format]) => format === null).map(([name]) => name);
    const kept = /(^embedding|orm|\.gate|keyValueUp|projection)$/;
    assert.ok(
      plain.every((name) => kept.test(name)),
      plain.join(),
    );
    assert.ok(codes.filter(([name]) => kept.test(name)).every(([, format]) => format === null));
    assert.equal(new Map(codes).get("head"), "int8");
    assert.equal(new Map(codes).get("layers.1.moe.experts.down"), "int4");
  });

  it("is read from the config.json that says it", () => {
    const written = writeQuantization(INT4, { hasHead: true, ignore: ["model.embed_tokens"] });
    assert.deepEqual(storedWeightFormat({ quantization_config: written }), INT4);
    assert.equal(storedWeightFormat({}), "bf16");
    const refused = [
      { ...written, format: "int-quantized" },
      { ...written, config_groups: {} },
      { ...written, kv_cache_scheme: { num_bits: 8 } },
      { ...written, config_groups: { group_0: { targets: ["Linear"], weights: { num_bits: 3 } } } },
    ];
    for (const quantization of refused) {
      assert.throws(() => storedWeightFormat({ quantization_config: quantization }), {
        code: "config.field",
      });
    }
  });
});
