/** @file Which routing rule each configuration asks for. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { routingRule } from "./gate.ts";
import { parseHuggingFaceConfig } from "./hugging-face-config.ts";
import { DEEPSEEK_V2_LITE, DEEPSEEK_V3 } from "./released-configs.fixture.ts";

test("DeepSeek-V3 takes eight experts of the four groups with the best two members", () => {
  assert.deepEqual(routingRule(parseHuggingFaceConfig(DEEPSEEK_V3)), {
    numExperts: 256,
    numChosen: 8,
    scoring: "sigmoid",
    numGroups: 8,
    numChosenGroups: 4,
    groupScore: "top2",
    normalise: true,
    routedScale: 2.5,
  });
});

test("V2-Lite takes the six best of all, weighted by their softmax", () => {
  assert.deepEqual(routingRule(parseHuggingFaceConfig(DEEPSEEK_V2_LITE)), {
    numExperts: 64,
    numChosen: 6,
    scoring: "softmax",
    numGroups: 1,
    numChosenGroups: 1,
    groupScore: "max",
    normalise: false,
    routedScale: 1,
  });
});

test("V2's groups count by their best member, and greedy choice knows no groups", () => {
  const config = parseHuggingFaceConfig({ ...DEEPSEEK_V2_LITE, n_group: 8, topk_group: 3 });
  const grouped = routingRule({ ...config, topkMethod: "group_limited_greedy" });
  assert.deepEqual([grouped.numGroups, grouped.numChosenGroups, grouped.groupScore], [8, 3, "max"]);
  assert.equal(routingRule(config).numGroups, 1);
});
