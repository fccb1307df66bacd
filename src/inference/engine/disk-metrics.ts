/** @file What the disk tier of the prefix cache counted, as metrics of an engine. */
import type { DiskTier } from "../prefix-cache/disk/disk-tier.ts";
import type { EngineMetric } from "./api.ts";

export function diskMetrics({ counts, problem, numDroppedStores }: DiskTier): EngineMetric[] {
  const metric = (
    kind: "counter" | "gauge",
    name: string,
    help: string,
    value: number,
  ): EngineMetric => ({ kind, name: `prefix_cache_disk_${name}`, help, labels: {}, value });
  const isUp = problem === null && counts !== null;
  return [
    metric("gauge", "up", "1 while the disk tier takes part, 0 when it is off.", isUp ? 1 : 0),
    metric(
      "gauge",
      "bytes",
      "Bytes of all blocks in the folder, as last counted.",
      counts?.bytes ?? 0,
    ),
    metric("gauge", "blocks", "Blocks in the folder, as last counted.", counts?.files ?? 0),
    metric("counter", "loaded_blocks_total", "Blocks read from the disk.", counts?.loaded ?? 0),
    metric("counter", "written_blocks_total", "Blocks written to the disk.", counts?.written ?? 0),
    metric(
      "counter",
      "evicted_blocks_total",
      "Blocks removed for the bound.",
      counts?.evicted ?? 0,
    ),
    metric("counter", "corrupt_blocks_total", "Damaged files, not served.", counts?.corrupt ?? 0),
    metric(
      "counter",
      "failed_writes_total",
      "Writes that failed: a full or read-only disk.",
      counts?.failedWrites ?? 0,
    ),
    metric(
      "counter",
      "dropped_stores_total",
      "Prefixes not stored because too many waited.",
      numDroppedStores,
    ),
  ];
}
