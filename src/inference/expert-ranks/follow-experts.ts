/** @file A rank that serves experts to the leading one, pass after pass. */
import type { CpuMemory } from "../../device/cpu/memory.ts";
import type { ExpertShare } from "../../model/expert-share.ts";
import type { ServedExperts } from "../../model/served-experts.ts";
import { finish } from "../../parallel/communicator/work.ts";
import { runInterleaved } from "../../parallel/pipeline/executor/interleave.ts";
import { ExpertMover } from "./expert-mover.ts";
import { ExpertOrders } from "./expert-orders.ts";

/** Until the leader ends it. */
export function followExperts(share: ExpertShare, experts: ServedExperts, memory: CpuMemory): void {
  const orders = new ExpertOrders(share.ranks, memory);
  const mover = new ExpertMover(share, experts, memory);
  const { numLayers } = experts.config;
  const layers = experts.moeLayerIndices.filter((index) => index < numLayers);
  const drafts = experts.moeLayerIndices.filter((index) => index === numLayers);
  for (;;) {
    const order = orders.next();
    if (order === "end") return;
    if (order === "rebalance") mover.move();
    else if (order === "draft") finish(experts.serve(drafts, 0));
    else if (order === "layers") finish(experts.serve(layers, 0));
    else runInterleaved(experts.serve(layers, 0), experts.serve(layers, 1), null);
  }
}
