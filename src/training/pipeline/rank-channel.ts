/**
 * @file What the leading rank says to the others between steps, and how they wait for it.
 *
 * A command is two numbers, what to do and an argument, and may be followed by text or a tensor. A
 * rank that waits for a command polls, at once after the last one and every millisecond later. It
 * does so for as long as the leader works: that shows with every launch and every tensor that it
 * goes on, also while it validates, samples or writes a checkpoint. While data are prepared and
 * models are begun nobody shows that; then only processes are watched.
 */
import { assert } from "../../base/errors.ts";
import type { CpuMemory } from "../../device/cpu/memory.ts";
import { atLeisure } from "../../parallel/communicator/at-leisure.ts";
import type { Communicator, Judged } from "../../parallel/communicator/communicator.ts";
import { Arena } from "../../tensor/arena.ts";
import type { DType } from "../../tensor/dtype.ts";
import type { Tensor } from "../../tensor/tensor.ts";
import { view } from "../../tensor/view.ts";

export const LEADER = 0;

export const COMMANDS = [
  "begin",
  "step",
  "fetch",
  "put",
  "held",
  "restore",
  "timed",
  "end",
] as const;
export type Command = (typeof COMMANDS)[number];

export interface Order {
  readonly command: Command;
  readonly argument: number;
}

export class RankChannel {
  /** Whether the ranks are within a step, where nobody listens to orders. */
  isInStep = false;
  readonly #communicator: Communicator;
  readonly #arena: Arena;

  /** Collective. */
  constructor(world: Communicator, memory: CpuMemory) {
    const communicator = world.split(0, world.rank, "commands");
    assert(communicator !== null, "every rank is part of it");
    this.#communicator = communicator;
    this.#arena = new Arena(memory, "commands");
  }

  get rank(): number {
    return this.#communicator.rank;
  }

  /** The ranks that are led. */
  get followers(): readonly number[] {
    return Array.from({ length: this.#communicator.size - 1 }, (_, index) => index + 1);
  }

  order(to: number, command: Command, argument = 0): void {
    using _mark = this.#arena.mark();
    const words = this.#arena.allocate("i32", [1, 2]);
    view(words).set([COMMANDS.indexOf(command), argument]);
    this.send(words, to);
  }

  /** The leader's next order; `judged` is what has to show meanwhile that it lives. */
  async nextOrder(judged: Judged): Promise<Order> {
    using _mark = this.#arena.mark();
    const words = this.#arena.allocate("i32", [1, 2]);
    await atLeisure(this.#communicator, this.#communicator.receive(words, LEADER), judged);
    const [number, argument] = view(words) as unknown as [number, number];
    const command = COMMANDS[number];
    assert(command !== undefined, `an order of number ${number}`);
    return { command, argument };
  }

  /** To the leader: this rank is there and waits for orders. */
  async reportReady(): Promise<void> {
    using _mark = this.#arena.mark();
    const nothing = this.#arena.allocate("u8", [1, 1]);
    const communicator = this.#communicator;
    await atLeisure(communicator, communicator.send(nothing, LEADER), "processes");
  }

  /** Until another rank has said so, however long it takes. */
  async untilReady(rank: number): Promise<void> {
    using _mark = this.#arena.mark();
    const nothing = this.#arena.allocate("u8", [1, 1]);
    const communicator = this.#communicator;
    await atLeisure(communicator, communicator.receive(nothing, rank), "processes");
  }

  /** Waits until it has been received. */
  send(tensor: Tensor, to: number): void {
    this.#communicator.send(tensor, to).wait();
  }

  receive(tensor: Tensor, from: number): void {
    this.#communicator.receive(tensor, from).wait();
  }

  /** A tensor from another rank, good until the next call. */
  receiveAs(dtype: DType, shape: readonly number[], from: number): Tensor {
    using _mark = this.#arena.mark();
    const tensor = this.#arena.allocate(dtype, shape);
    this.receive(tensor, from);
    return tensor;
  }

  /** Plain data, whose size the receiver does not know. */
  sendData(data: unknown, to: number): void {
    const bytes = new TextEncoder().encode(JSON.stringify(data));
    using _mark = this.#arena.mark();
    const length = this.#arena.allocate("i32", [1, 1]);
    view(length)[0] = bytes.length;
    const text = this.#arena.allocate("u8", [1, bytes.length]);
    view(text).set(bytes);
    this.send(length, to);
    this.send(text, to);
  }

  receiveData(from: number): unknown {
    const [bytes] = view(this.receiveAs("i32", [1, 1], from)) as unknown as [number];
    const text = this.receiveAs("u8", [1, bytes], from) as Tensor<"u8">;
    return JSON.parse(new TextDecoder().decode(view(text).slice()));
  }

  /** Collective: the leader's numbers, on every rank. */
  share(numbers: Int32Array | null, length: number): Int32Array<ArrayBuffer> {
    using _mark = this.#arena.mark();
    const tensor = this.#arena.allocate("i32", [1, length]);
    if (numbers !== null) view(tensor).set(numbers);
    this.#communicator.broadcast(tensor, LEADER).wait();
    return Int32Array.from(view(tensor));
  }
}
