/**
 * @file Parameters that two ranks hold: their gradients are added up on the one that moves them,
 * and their new values given back.
 *
 * The sum of two does not depend on their order, so both ways of asking give the same bits. Both
 * ranks go through what they share in one order.
 */
import { assert } from "../../base/errors.ts";
import type { Device } from "../../device/device.ts";
import { accumulate } from "../../kernels/accumulate/contract.ts";
import type { Communicator, Operation } from "../../parallel/communicator/communicator.ts";
import { Arena } from "../../tensor/arena.ts";
import type { Parameter, ParameterSet } from "../parameters.ts";
import type { RankLayout } from "./rank-layout.ts";

interface Shared {
  readonly parameter: Parameter;
  readonly isOwner: boolean;
  readonly other: number;
}

export class SharedParameters {
  readonly #device: Device;
  readonly #pipeline: Communicator;
  readonly #scratch: Arena;
  readonly #shared: readonly Shared[];

  constructor(
    device: Device,
    pipeline: Communicator,
    parameters: ParameterSet,
    { holdings }: RankLayout,
  ) {
    const { rank } = pipeline;
    this.#device = device;
    this.#pipeline = pipeline;
    this.#scratch = new Arena(device.memory, "shared gradients");
    this.#shared = [...holdings].flatMap(([name, { holders, owner }]) => {
      if (holders.length === 1 || !holders.includes(rank)) return [];
      assert(holders.length === 2, `${name} is held by ${holders.length} ranks`);
      const other = holders.find((holder) => holder !== rank)!;
      return [{ parameter: parameters.get(name), isOwner: owner === rank, other }];
    });
  }

  /** Owners get the sums; what copies hold afterwards is of no use. */
  sumGradients(): void {
    const sends: Operation[] = [];
    for (const { parameter, isOwner, other } of this.#shared) {
      const { gradient, shape } = parameter;
      if (!isOwner) {
        sends.push(this.#pipeline.send(gradient, other));
        continue;
      }
      using _mark = this.#scratch.mark();
      const received = this.#scratch.allocate(gradient.dtype, shape);
      this.#pipeline.receive(received, other).wait();
      accumulate(this.#device, { x: received, scale: 1, out: gradient });
    }
    for (const send of sends) send.wait();
  }

  /** Copies get the values of their owners. */
  spreadValues(): void {
    const operations = this.#shared.map(({ parameter: { value }, isOwner, other }) =>
      isOwner ? this.#pipeline.send(value, other) : this.#pipeline.receive(value, other),
    );
    for (const operation of operations) operation.wait();
  }
}
