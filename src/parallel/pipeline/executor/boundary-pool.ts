/** @file Tensors of the shape that crosses between stages, taken and given back. */
import type { CpuMemory } from "../../../device/cpu/memory.ts";
import { DTYPE_BYTES } from "../../../tensor/dtype.ts";
import { makeTensor, type Tensor } from "../../../tensor/tensor.ts";
import { Scratch } from "../../communicator/scratch.ts";
import type { Boundary } from "./stage.ts";

export class BoundaryPool {
  readonly #scratch: Scratch;
  readonly #memory: CpuMemory;
  readonly #boundary: Boundary;
  readonly #bytes: number;
  numTaken = 0;

  constructor(memory: CpuMemory, boundary: Boundary) {
    this.#scratch = new Scratch(memory);
    this.#memory = memory;
    this.#boundary = boundary;
    const elements = boundary.shape.reduce((product, dimension) => product * dimension, 1);
    this.#bytes = elements * DTYPE_BYTES[boundary.dtype];
  }

  take(): Tensor {
    this.numTaken++;
    const { dtype, shape } = this.#boundary;
    return makeTensor(this.#memory, dtype, shape, this.#scratch.take(this.#bytes));
  }

  giveBack({ byteOffset }: Tensor): void {
    this.numTaken--;
    this.#scratch.giveBack(byteOffset, this.#bytes);
  }
}
