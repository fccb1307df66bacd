/**
 * @file The rank that has the tokens, as the others see it: it tells them of every pass.
 */
import type { CpuMemory } from "../../device/cpu/memory.ts";
import type { ExpertShare } from "../../model/expert-share.ts";
import type { Followers } from "../decoder.ts";
import { ExpertOrders } from "./expert-orders.ts";

export class ExpertLeader implements Followers {
  readonly #orders: ExpertOrders;

  /** The other ranks are in `followExperts`. */
  constructor(share: ExpertShare, memory: CpuMemory) {
    this.#orders = new ExpertOrders(share.ranks, memory);
  }

  announce(pass: "layers" | "draft"): void {
    this.#orders.give(pass);
  }

  /** Between passes: the others return. */
  end(): void {
    this.#orders.give("end");
  }
}
