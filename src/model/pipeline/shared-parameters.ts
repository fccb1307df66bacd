/**
 * @file Parameters that two ranks hold: their gradients are added up on the one that moves them,
 * and their new values given back.
 *
 * The sum of two does not depend on their order, so both ways of asking give the same bits. Both
 * ranks go through what they share in one order. Gradients cross in pieces, each added up while it
 * is in the cache: memory is what a long sum waits for.
 */
import { assert } from "../../base/errors.ts";
import { ceilDiv, floorDiv } from "../../base/integers.ts";
import type { Device } from "../../device/device.ts";
import { accumulate } from "../../kernels/accumulate/contract.ts";
import type { Communicator } from "../../parallel/communicator/communicator.ts";
import { Arena } from "../../tensor/arena.ts";
import type { FloatType } from "../../tensor/dtype.ts";
import { flatSlice } from "../../tensor/flat-slice.ts";
import { elementCount, reshape, sliceRows, type Tensor } from "../../tensor/tensor.ts";
import type { Parameter, ParameterSet } from "../parameters.ts";
import type { RankLayout } from "./rank-layout.ts";

/** A quarter of a megabyte of f32: one piece is added while the next one arrives. */
const PIECE_ELEMENTS = 64 * 1024;
const PIECES_UNDER_WAY = 2;

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
    const pieces = this.#shared.flatMap(({ parameter: { gradient }, ...shared }) =>
      piecesOf(gradient).map((piece) => ({ piece, ...shared })),
    );
    const [first] = pieces;
    if (first === undefined) return;
    const longest = Math.max(...pieces.map(({ piece }) => elementCount(piece)));
    using _mark = this.#scratch.mark();
    const places = Array.from({ length: PIECES_UNDER_WAY }, () =>
      this.#scratch.allocate(first.piece.dtype, [1, longest]),
    );
    // First, or each rank would wait while the other one adds up.
    const sends = pieces
      .filter(({ isOwner }) => !isOwner)
      .map(({ piece, other }) => this.#pipeline.send(piece, other));
    const arriving: (() => void)[] = [];
    for (const [index, { piece, other }] of pieces.filter(({ isOwner }) => isOwner).entries()) {
      if (arriving.length === PIECES_UNDER_WAY) arriving.shift()!();
      const place = flatSlice(places[index % PIECES_UNDER_WAY]!, 0, elementCount(piece));
      const x = reshape(place, piece.shape);
      const operation = this.#pipeline.receive(x, other);
      arriving.push(() => {
        operation.wait();
        accumulate(this.#device, { x, scale: 1, out: piece });
      });
    }
    for (const addUp of arriving) addUp();
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

/** Whole rows of a matrix, as many as make a piece. */
function piecesOf<D extends FloatType>(matrix: Tensor<D>): readonly Tensor<D>[] {
  const { rows, columns } = matrix;
  const step = Math.max(1, floorDiv(PIECE_ELEMENTS, columns));
  return Array.from({ length: ceilDiv(rows, step) }, (_, index) =>
    sliceRows(matrix, index * step, Math.min(rows, (index + 1) * step)),
  );
}
