/**
 * @file Where the experts of one layer are at the moment, and which copy of a chosen expert a token
 * goes to.
 *
 * A rank deals the choices of an expert to its copies in turn, beginning with a copy that depends
 * on the rank: the load of each is an equal part, whatever the tokens, and follows from the choices
 * alone.
 */
import { assert } from "../../../base/errors.ts";
import type { Placement } from "./place-experts.ts";

export class LivePlacement {
  #current: Placement;

  constructor(first: Placement) {
    this.#current = first;
  }

  get current(): Placement {
    return this.#current;
  }

  /** Between steps, when the weights have moved. */
  replace(next: Placement): void {
    const { length } = this.#current.physicalToLogical;
    assert(next.physicalToLogical.length === length, "both placements have the same places");
    this.#current = next;
  }

  /** Physical experts for the choices of a rank's tokens, one after the other. */
  toPhysical(choices: Int32Array, rank: number): Int32Array {
    const { logicalToPhysical } = this.#current;
    const turn = new Int32Array(logicalToPhysical.length).fill(rank);
    return choices.map((expert) => {
      const copies = logicalToPhysical[expert]!;
      return copies[turn[expert]!++ % copies.length]!;
    });
  }
}
