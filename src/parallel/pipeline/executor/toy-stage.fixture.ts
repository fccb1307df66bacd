/**
 * @file A stage small enough for tests, with real products on the kernels:
 *
 *     z = x·Wᵀ,  y = x + z²        dz = 2·z·dy,  dx = dy + dz·W,  dW += dzᵀ·x
 *
 * The last stage's loss is ½Σy², so its dy is y. Inputs of the first stage come from a seed.
 */
import { Random } from "../../../base/random.ts";
import type { Device } from "../../../device/device.ts";
import { matmul } from "../../../kernels/matmul/contract.ts";
import { makeTensor, type Tensor } from "../../../tensor/tensor.ts";
import { view } from "../../../tensor/view.ts";
import type { Operation } from "../../communicator/communicator.ts";
import type { BackwardCall, ForwardCall, Stage, Work } from "./stage.ts";

/** Ragged on purpose. */
export const ROWS = 5;
export const COLUMNS = 21;

interface Saved {
  readonly x: Tensor<"f32">;
  readonly z: Tensor<"f32">;
  readonly y: Tensor<"f32">;
}

export interface ToyOptions {
  readonly stage: number;
  readonly isLast: boolean;
  /** Communication to wait for in the middle of each piece of work, as experts would. */
  readonly communicate?: () => Operation;
}

export class ToyStage implements Stage {
  readonly gradient: Tensor<"f32">;
  readonly losses: Map<number, number> = new Map();
  readonly #device: Device;
  readonly #options: ToyOptions;
  readonly #weight: Tensor<"f32">;
  readonly #saved = new Map<number, Saved>();
  readonly #deferred = new Map<number, { x: Tensor<"f32">; dz: Tensor<"f32"> }>();

  constructor(device: Device, options: ToyOptions) {
    this.#device = device;
    this.#options = options;
    const random = new Random(77, `stage ${options.stage}`);
    this.#weight = this.#make(COLUMNS);
    view(this.#weight).set(Float32Array.from({ length: COLUMNS ** 2 }, () => random.normal() / 9));
    this.gradient = this.#make(COLUMNS);
  }

  *forward({ microBatch, input, output }: ForwardCall): Work {
    const x = this.#copy((input as Tensor<"f32"> | null) ?? this.#tokens(microBatch));
    const z = this.#make(ROWS);
    const operation = this.#options.communicate?.();
    matmul(this.#device, { transposition: "nt", a: x, b: this.#weight, out: z });
    if (operation !== undefined) yield operation;
    const y = this.#make(ROWS);
    const [xs, zs, ys] = [view(x), view(z), view(y)];
    for (let index = 0; index < ys.length; index++) ys[index] = xs[index]! + zs[index]! ** 2;
    this.#saved.set(microBatch, { x, z, y });
    if (output !== null) view(output).set(ys);
    else this.losses.set(microBatch, ys.reduce((sum, value) => sum + value * value, 0) / 2);
  }

  *backwardInput({ microBatch, dOutput, dInput }: BackwardCall): Work {
    const { x, z, y } = this.#saved.get(microBatch)!;
    this.#saved.delete(microBatch);
    const dy = view((dOutput as Tensor<"f32"> | null) ?? y);
    const dz = this.#make(ROWS);
    const [zs, dzs] = [view(z), view(dz)];
    for (let index = 0; index < dzs.length; index++) dzs[index] = 2 * zs[index]! * dy[index]!;
    const operation = this.#options.communicate?.();
    if (dInput !== null) {
      const dx = dInput as Tensor<"f32">;
      matmul(this.#device, { transposition: "nn", a: dz, b: this.#weight, out: dx });
      const dxs = view(dx);
      for (let index = 0; index < dxs.length; index++) dxs[index]! += dy[index]!;
    }
    if (operation !== undefined) yield operation;
    this.#deferred.set(microBatch, { x, dz });
  }

  fillWait(): boolean {
    return false;
  }

  backwardWeight(microBatch: number): void {
    const { x, dz } = this.#deferred.get(microBatch)!;
    this.#deferred.delete(microBatch);
    const out = this.gradient;
    matmul(this.#device, { transposition: "tn", a: dz, b: x, out, accumulate: true });
  }

  #tokens(microBatch: number): Tensor<"f32"> {
    const random = new Random(78, `micro-batch ${microBatch}`);
    const x = this.#make(ROWS);
    view(x).set(Float32Array.from({ length: ROWS * COLUMNS }, () => random.normal()));
    return x;
  }

  #make(rows: number): Tensor<"f32"> {
    const { memory } = this.#device;
    return makeTensor(memory, "f32", [rows, COLUMNS], memory.reserve(4 * rows * COLUMNS));
  }

  #copy(x: Tensor<"f32">): Tensor<"f32"> {
    const copy = this.#make(ROWS);
    view(copy).set(view(x));
    return copy;
  }
}
