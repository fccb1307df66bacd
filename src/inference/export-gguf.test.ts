/** @file An exported model holds the same numbers and the same tokens. */
import assert from "node:assert/strict";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { describe, it } from "node:test";
import { decodeFloats } from "../checkpoint/float-codec.ts";
import { decodeBlocks } from "../checkpoint/gguf-blocks.ts";
import { openGguf } from "../checkpoint/gguf-reader.ts";
import { openCpuDevice } from "../kernels/cpu.ts";
import { Model } from "../model/model.ts";
import { TINY } from "../model/test-support.ts";
import { fromBf16, toBf16 } from "../numerics/bf16.ts";
import { dequantizeRow, makeCodedRow, quantizeRow } from "../numerics/integer-groups.ts";
import { view } from "../tensor/view.ts";
import { trainBpe } from "../tokenizer/bpe-train.ts";
import { learnedVocabulary, Tokenizer } from "../tokenizer/tokenizer.ts";
import { exportGguf } from "./export-gguf.ts";

const merges = trainBpe(["the cat sat on the mat"], { vocabSize: 9 + 256 + 5, numAddedTokens: 9 });
const tokenizer = new Tokenizer(learnedVocabulary(merges));
const config = { ...TINY, vocabSize: tokenizer.vocabSize + 2 };

describe("exportGguf", () => {
  it("writes matrices in the dtype asked for, the rest in F32, and the tokenizer", async () => {
    await using device = await openCpuDevice({ kernels: "reference", numThreads: 1 });
    const model = new Model(device, config, { precision: "f32", seed: 2, gradients: false });
    const folder = mkdtempSync(join(tmpdir(), "hadal-gguf-"));
    try {
      const rounders = {
        f32: (value: number) => value,
        bf16: (value: number) => fromBf16(toBf16(value)),
        f16: (value: number) => Math.f16round(value),
      } as const;
      for (const dtype of ["f32", "bf16", "f16"] as const) {
        const path = join(folder, `${dtype}.gguf`);
        exportGguf({ model, tokenizer }, path, dtype);
        using file = openGguf(path);
        const head = new Float32Array(config.vocabSize * config.hiddenDim);
        const stored = ({ f32: "F32", bf16: "BF16", f16: "F16" } as const)[dtype];
        decodeFloats(stored, file.read("output.weight"), head);
        const values = Float32Array.from(view(model.parameters.get("head").value));
        assert.deepEqual(head, values.map(rounders[dtype]), dtype);
        assert.equal(file.tensors.get("blk.1.ffn_gate_inp.weight")?.dtype, "F32");
        assert.equal(file.tensors.get("output.weight")?.dtype, dtype.toUpperCase());
        const strings = (key: string): readonly unknown[] => {
          const entry = file.metadata.get(`tokenizer.ggml.${key}`);
          assert.ok(entry?.type === "array", key);
          return entry.values;
        };
        const tokens = strings("tokens");
        assert.equal(tokens.length, config.vocabSize);
        for (let id = 0; id < tokenizer.vocabSize; id++) {
          assert.equal(tokens[id], tokenizer.tokenName(id));
        }
        assert.deepEqual(tokens.slice(-2), [
          `[PAD${tokenizer.vocabSize}]`,
          `[PAD${config.vocabSize - 1}]`,
        ]);
        assert.equal(strings("merges").length, merges.left.length);
        assert.deepEqual(strings("token_type").slice(0, 10), [3, 3, 3, 3, 3, 3, 3, 4, 4, 1]);
      }
    } finally {
      rmSync(folder, { recursive: true });
    }
  });

  for (const dtype of ["q8_0", "q4_0"] as const) {
    it(`writes ${dtype} with the codes that inference keeps, the rest in BF16 or F32`, async () => {
      await using device = await openCpuDevice({ kernels: "reference", numThreads: 1 });
      const wide = { ...config, hiddenDim: 64, moeIntermediateDim: 32 };
      const model = new Model(device, wide, { precision: "f32", seed: 2, gradients: false });
      const folder = mkdtempSync(join(tmpdir(), "hadal-gguf-"));
      try {
        const path = join(folder, "blocks.gguf");
        exportGguf({ model, tokenizer }, path, dtype);
        using file = openGguf(path);
        const typeOf = (name: string): string | undefined => file.tensors.get(name)?.dtype;
        const blocks = dtype === "q8_0" ? "Q8_0" : "Q4_0";
        assert.equal(typeOf("blk.1.ffn_gate_exps.weight"), blocks);
        assert.equal(typeOf("blk.1.ffn_down_exps.weight"), blocks);
        assert.equal(typeOf("output.weight"), "Q8_0");
        assert.equal(typeOf("token_embd.weight"), "BF16");
        assert.equal(typeOf("blk.0.attn_k_b.weight"), "BF16");
        assert.equal(typeOf("blk.1.ffn_gate_inp.weight"), "F32");
        // Six columns are no whole block.
        assert.equal(typeOf("blk.0.attn_q_b.weight"), "BF16");
        const values = Float32Array.from(
          view(model.parameters.get("layers.1.moe.experts.down").value),
        );
        const expected = new Float32Array(values.length);
        const rule = { bits: dtype === "q8_0" ? 8 : 4, groupSize: 32, asymmetric: false } as const;
        for (let at = 0; at < values.length; at += 32) {
          const row = makeCodedRow(32, 32);
          quantizeRow(values.subarray(at, at + 32), rule, row);
          dequantizeRow(row, 32, expected.subarray(at, at + 32));
        }
        const actual = new Float32Array(values.length);
        decodeBlocks(blocks, file.read("blk.1.ffn_down_exps.weight"), actual);
        assert.deepEqual(actual, expected);
      } finally {
        rmSync(folder, { recursive: true });
      }
    });
  }

  it("refuses a tokenizer with more tokens than the model", async () => {
    await using device = await openCpuDevice({ kernels: "reference", numThreads: 1 });
    const small = { ...config, vocabSize: 50 };
    const model = new Model(device, small, { precision: "f32", seed: 2, gradients: false });
    assert.throws(() => exportGguf({ model, tokenizer }, "/nowhere/x.gguf", "f32"), {
      code: "model.export",
      message: /tokens, the model only 50/,
    });
  });
});
