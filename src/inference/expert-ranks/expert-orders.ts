/**
 * @file What the leading rank says to those that serve it experts.
 *
 * An order goes to all of them at once. They wait for the next one asleep, woken when it comes, and
 * for as long as the leader's process lives: nobody asks for tokens at night.
 */
import { assert } from "../../base/errors.ts";
import type { CpuMemory } from "../../device/cpu/memory.ts";
import type { Communicator } from "../../parallel/communicator/communicator.ts";
import { Arena } from "../../tensor/arena.ts";
import type { Tensor } from "../../tensor/tensor.ts";
import { fillFrom, view } from "../../tensor/view.ts";

/** The rank that has the tokens. */
export const LEADER = 0;

/**
 * Passes through the layers, with all tokens at once or as two micro-batches, or through the first
 * MTP module; moving experts; the end.
 */
const ORDERS = ["layers", "microBatches", "draft", "rebalance", "end"] as const;
export type Order = (typeof ORDERS)[number];

export class ExpertOrders {
  readonly #ranks: Communicator;
  readonly #order: Tensor<"i32">;

  constructor(ranks: Communicator, memory: CpuMemory) {
    this.#ranks = ranks;
    this.#order = new Arena(memory, "orders").allocate("i32", [1, 1]);
  }

  /** The leader's: returns when all have it. */
  give(order: Order): void {
    assert(this.#ranks.rank === LEADER, "the leader gives orders");
    fillFrom(this.#order, [ORDERS.indexOf(order)]);
    this.#ranks.broadcast(this.#order, LEADER).wait();
  }

  /** The others': the next one, whenever it comes. */
  next(): Order {
    this.#ranks.broadcast(this.#order, LEADER).wait("processes");
    const [number] = view(this.#order);
    const order = ORDERS[number!];
    assert(order !== undefined, `an order of number ${number}`);
    return order;
  }
}
