/**
 * @file Elements of a tensor that lies in parts on many ranks, copied to other places of it.
 *
 * Everything that is read is read before anything is written: what comes, and what stays on its
 * rank, waits in scratch until all messages are over. All ranks make the same list of copies, and
 * each finds its own part in it.
 */
import type { Arena } from "../../../tensor/arena.ts";
import { type ElementRange, flatSlice } from "../../../tensor/flat-slice.ts";
import type { Tensor } from "../../../tensor/tensor.ts";
import { view } from "../../../tensor/view.ts";
import type { Communicator, Operation } from "../../communicator/communicator.ts";

/** Where elements are: `owner` divides the ranks, its `parts` the elements. */
export interface Places {
  readonly owner: number;
  readonly element: number;
}

/** `numElements` elements from one place to another. */
export interface ElementCopy {
  readonly from: Places;
  readonly to: Places;
  readonly numElements: number;
}

/** A tensor of each owner, on the ranks that `rankOf` names, in parts. */
export interface Divided {
  readonly communicator: Communicator;
  readonly parts: readonly ElementRange[];
  readonly rankOf: (part: number, owner: number) => number;
  /** This rank's part of its owner's. */
  readonly mine: Tensor;
  /** Its number. */
  readonly part: number;
}

/** Collective over the communicator. */
export function copyElements(
  divided: Divided,
  copies: readonly ElementCopy[],
  scratch: Arena,
): void {
  const { communicator, mine, parts, part } = divided;
  const first = parts[part]!.start;
  const operations: Operation[] = [];
  const arrived: { readonly from: Tensor; readonly to: Tensor }[] = [];
  using _mark = scratch.mark();
  for (const piece of copies.flatMap((copy) => piecesOf(divided, copy))) {
    const { fromRank, toRank, from, to, numElements } = piece;
    const source = (): Tensor => flatSlice(mine, from - first, numElements);
    const target = (): Tensor => flatSlice(mine, to - first, numElements);
    if (toRank === communicator.rank) {
      const waiting = scratch.allocate(mine.dtype, [1, numElements]);
      arrived.push({ from: waiting, to: target() });
      if (fromRank === toRank) copy(source(), waiting);
      else operations.push(communicator.receive(waiting, fromRank));
    } else if (fromRank === communicator.rank) {
      operations.push(communicator.send(source(), toRank));
    }
  }
  for (const operation of operations) operation.wait();
  for (const { from, to } of arrived) copy(from, to);
}

interface Piece {
  readonly fromRank: number;
  readonly toRank: number;
  readonly from: number;
  readonly to: number;
  readonly numElements: number;
}

/** A copy cut where either side's part ends. */
function piecesOf({ parts, rankOf }: Divided, copy: ElementCopy): Piece[] {
  const { from, to, numElements } = copy;
  const pieces: Piece[] = [];
  for (const [target, { start, end }] of parts.entries()) {
    for (const [source, range] of parts.entries()) {
      const first = Math.max(0, start - to.element, range.start - from.element);
      const last = Math.min(numElements, end - to.element, range.end - from.element);
      if (first >= last) continue;
      pieces.push({
        fromRank: rankOf(source, from.owner),
        toRank: rankOf(target, to.owner),
        from: from.element + first,
        to: to.element + first,
        numElements: last - first,
      });
    }
  }
  return pieces;
}

function copy(from: Tensor, to: Tensor): void {
  view(to).set(view(from));
}
