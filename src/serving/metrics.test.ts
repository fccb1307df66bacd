/** @file The text that Prometheus reads. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { expositionText } from "./metrics.ts";

test("families stand together, buckets rise to +Inf, labels are escaped", () => {
  const gauge = { kind: "gauge", name: "g", help: "a\nb" } as const;
  const text = expositionText([
    { ...gauge, labels: { m: 'x"\\\n' }, value: 1 },
    {
      kind: "histogram",
      name: "h",
      help: "h",
      labels: { m: "y" },
      buckets: [
        { upTo: 0.5, count: 1 },
        { upTo: Infinity, count: 3 },
      ],
      sum: 2.5,
    },
    { ...gauge, labels: {}, value: 2 },
  ]);
  assert.deepEqual(text.split("\n"), [
    "# HELP hadal_g a\\nb",
    "# TYPE hadal_g gauge",
    'hadal_g{m="x\\"\\\\\\n"} 1',
    "hadal_g 2",
    "# HELP hadal_h h",
    "# TYPE hadal_h histogram",
    'hadal_h_bucket{m="y",le="0.5"} 1',
    'hadal_h_bucket{m="y",le="+Inf"} 3',
    'hadal_h_sum{m="y"} 2.5',
    'hadal_h_count{m="y"} 3',
    "",
  ]);
});
