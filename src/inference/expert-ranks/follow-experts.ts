/** @file A rank that serves experts to the leading one, pass after pass. */
import { assert } from "../../base/errors.ts";
import type { CpuMemory } from "../../device/cpu/memory.ts";
import type { ExpertShare } from "../../model/expert-share.ts";
import type { ServedExperts } from "../../model/served-experts.ts";
import { finish } from "../../parallel/communicator/work.ts";
import { ExpertOrders } from "./expert-orders.ts";

/** Until the leader ends it. */
export function followExperts(share: ExpertShare, experts: ServedExperts, memory: CpuMemory): void {
  const orders = new ExpertOrders(share.ranks, memory);
  const { numLayers } = experts.config;
  const layers = experts.moeLayerIndices.filter((index) => index < numLayers);
  const drafts = experts.moeLayerIndices.filter((index) => index === numLayers);
  for (;;) {
    const order = orders.next();
    if (order === "end") return;
    assert(order !== "rebalance", "experts move");
    for (const layerIndex of order === "layers" ? layers : drafts) {
      finish(experts.serve(layerIndex));
    }
  }
}
