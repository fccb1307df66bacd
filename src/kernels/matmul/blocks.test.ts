/** @file The division of products into tasks. */
import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { ceilDiv } from "../../base/integers.ts";
import { Random } from "../../base/random.ts";
import { planBlocks } from "./blocks.ts";

const numTasks = (product: Parameters<typeof planBlocks>[0]): number => {
  const { rowBlock, columnBlock } = planBlocks(product);
  return ceilDiv(product.rows, rowBlock) * ceilDiv(product.columns, columnBlock);
};

describe("the division of a product into tasks", () => {
  it("leaves a small product, and one thread's, whole", () => {
    assert.equal(numTasks({ rows: 64, columns: 64, depth: 32, numThreads: 8 }), 1);
    assert.equal(numTasks({ rows: 512, columns: 4096, depth: 4096, numThreads: 1 }), 1);
  });

  it("gives two threads four even tasks of a large product", () => {
    const product = { rows: 1024, columns: 1024, depth: 1024, numThreads: 2 };
    const { rowBlock, columnBlock } = planBlocks(product);
    assert.equal(rowBlock * columnBlock, (1024 * 1024) / 4);
  });

  it("cuts the longer side, so that less is packed", () => {
    const wide = planBlocks({ rows: 64, columns: 32768, depth: 512, numThreads: 2 });
    assert.equal(wide.rowBlock, 64);
    const tall = planBlocks({ rows: 1500, columns: 96, depth: 512, numThreads: 2 });
    assert.ok(tall.columnBlock >= 96);
    const decode = planBlocks({ rows: 1, columns: 2048, depth: 2048, numThreads: 2 });
    assert.deepEqual(decode, { rowBlock: 32, columnBlock: 512 });
  });

  it("lets a batch be its own division", () => {
    const product = { rows: 256, columns: 256, depth: 256, numThreads: 2, batchCount: 16 };
    assert.equal(numTasks(product), 1);
  });

  it("occupies all threads wherever there is work, with blocks of bounded size", () => {
    const random = new Random(1, "blocks");
    for (let i = 0; i < 2000; i++) {
      const product = {
        rows: random.below(3000),
        columns: random.below(6000),
        depth: random.below(4000),
        numThreads: 1 + random.below(64),
      };
      const { rowBlock, columnBlock } = planBlocks(product);
      const text = JSON.stringify({ ...product, rowBlock, columnBlock });
      assert.ok(rowBlock >= 32 && rowBlock <= 4096 && rowBlock % 32 === 0, text);
      assert.ok(columnBlock >= 64 && columnBlock <= 4096 && columnBlock % 64 === 0, text);
      const mostTasks = ceilDiv(product.rows, 32) * ceilDiv(product.columns, 64);
      const work = product.rows * product.columns * product.depth;
      if (work > 2 ** 26 * product.numThreads && mostTasks >= 4 * product.numThreads) {
        assert.ok(numTasks(product) >= product.numThreads, text);
      }
    }
  });
});
