/**
 * @file The rank that has the tokens, as the others see it: it tells them of every pass, and every
 * so many tokens has experts move to where their load of late is borne best.
 */
import type { CpuMemory } from "../../device/cpu/memory.ts";
import type { ExpertModel } from "../../model/expert-layers.ts";
import type { ExpertShare } from "../../model/expert-share.ts";
import { gpuLoads } from "../../parallel/expert/placement/place-experts.ts";
import type { EngineMetric } from "../engine/api.ts";
import type { ExpertLoad } from "../expert-load.ts";
import { ExpertMover } from "./expert-mover.ts";
import { ExpertOrders } from "./expert-orders.ts";
import type { Followers } from "./followers.ts";
import { type MicroBatchChoice, MicroBatchPolicy } from "./micro-batch-policy.ts";

export interface LeaderOptions {
  readonly memory: CpuMemory;
  /** Tokens after which experts are placed anew; 0: never. */
  readonly rebalanceTokens: number;
  /** By the time that passes take if left out. */
  readonly choice?: MicroBatchChoice;
}

export class ExpertLeader implements Followers {
  readonly #share: ExpertShare;
  readonly #orders: ExpertOrders;
  readonly #mover: ExpertMover;
  readonly #rebalanceTokens: number;
  readonly choice: MicroBatchChoice;
  #nextAt: number;
  #numRebalances = 0;
  #numMoves = 0;
  #pauseSeconds = 0;
  /** Through the layers, with one micro-batch and with two. */
  readonly #numPasses = { layers: 0, microBatches: 0 };

  /** The other ranks are in `followExperts`. */
  constructor(share: ExpertShare, model: ExpertModel, options: LeaderOptions) {
    const { memory, rebalanceTokens, choice = new MicroBatchPolicy() } = options;
    this.choice = choice;
    this.#share = share;
    this.#orders = new ExpertOrders(share.ranks, memory);
    this.#mover = new ExpertMover(share, model, memory);
    this.#rebalanceTokens = rebalanceTokens;
    this.#nextAt = rebalanceTokens === 0 ? Number.POSITIVE_INFINITY : rebalanceTokens;
  }

  announce(pass: "layers" | "microBatches" | "draft", load: ExpertLoad): void {
    if (pass !== "draft") {
      this.#numPasses[pass]++;
      if (load.totalTokens >= this.#nextAt) this.#rebalance(load);
    }
    this.#orders.give(pass);
  }

  #rebalance(load: ExpertLoad): void {
    this.#nextAt = load.totalTokens + this.#rebalanceTokens;
    const start = performance.now();
    this.#orders.give("rebalance");
    const { numMoves } = this.#mover.move(load.layerIndexes.map((_, order) => load.ofLayer(order)));
    this.#numRebalances++;
    this.#numMoves += numMoves;
    this.#pauseSeconds += (performance.now() - start) / 1000;
  }

  describe(load: ExpertLoad): readonly EngineMetric[] {
    const counter = (name: string, value: number, help: string, labels = {}): EngineMetric => {
      return { kind: "counter", name, help, labels, value };
    };
    const passes = (value: number, microBatches: string): EngineMetric =>
      counter("expert_passes_total", value, "Passes through the layers, by micro-batches.", {
        micro_batches: microBatches,
      });
    return [
      passes(this.#numPasses.layers, "1"),
      passes(this.#numPasses.microBatches, "2"),
      ...load.layerIndexes.flatMap((layerIndex, order) =>
        this.#rankLoads(layerIndex, load.ofLayer(order)),
      ),
      {
        kind: "gauge",
        name: "expert_rebalance_interval_tokens",
        help: "Tokens after which experts are placed anew; 0: never.",
        labels: {},
        value: this.#rebalanceTokens,
      },
      counter("expert_rebalances_total", this.#numRebalances, "Times experts were placed anew."),
      counter("expert_moves_total", this.#numMoves, "Experts copied to another place."),
      counter(
        "expert_rebalance_seconds_total",
        this.#pauseSeconds,
        "Time that steps waited while experts were placed anew.",
      ),
    ];
  }

  #rankLoads(layerIndex: number, load: Float64Array): EngineMetric[] {
    const { size } = this.#share.ranks;
    const loads = gpuLoads(this.#share.layer(layerIndex).current, load, size);
    const total = loads.reduce((sum, each) => sum + each, 0);
    return loads.map((each, rank) => ({
      kind: "gauge",
      name: "expert_rank_load_over_mean",
      help: "What a rank bears of a layer's tokens over the mean of the ranks, of late; 1 is even.",
      labels: { layer: String(layerIndex), rank: String(rank) },
      value: total === 0 ? 1 : (each * size) / total,
    }));
  }

  /** Between passes: the others return. */
  end(): void {
    this.#orders.give("end");
  }
}
