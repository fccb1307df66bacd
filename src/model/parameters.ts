/**
 * @file The parameters of a model in one span of device memory, their gradients in a second one
 * beside it.
 *
 * The span has two parts, decayed (matrices) and undecayed (norm gains), so that the optimizer, the
 * gradient norm, the EMA and the averaging over ranks each run over two flat tensors. With bf16
 * products a third span holds the rounded copies that products read; `refreshCompute` makes them
 * anew after each change of the values.
 */
import { assert, defined } from "../base/errors.ts";
import { divExact, roundUp } from "../base/integers.ts";
import { Random } from "../base/random.ts";
import type { Device } from "../device/device.ts";
import { castRows } from "../kernels/cast-rows/contract.ts";
import type { Arena } from "../tensor/arena.ts";
import { DTYPE_BYTES, type DType, type FloatType } from "../tensor/dtype.ts";
import { elementCount, makeTensor, reshape, type Tensor } from "../tensor/tensor.ts";
import { view } from "../tensor/view.ts";
import type { ModelConfig } from "./config.ts";
import {
  declareParameters,
  type ParameterDeclaration,
  type ParameterRole,
} from "./parameter-declarations.ts";

/** What operands of matrix products are stored in: bf16, or the float type unrounded. */
export type ComputeType = "bf16" | FloatType;

export interface Parameter {
  readonly name: string;
  /** [out, in]; a norm gain is [1, width]. */
  readonly shape: readonly [rows: number, columns: number];
  readonly role: ParameterRole;
  /** Whether weight decay applies: to everything but the norm gains. */
  readonly decays: boolean;
  readonly value: Tensor<FloatType>;
  /** Asserts that the set was made with gradients. */
  readonly gradient: Tensor<FloatType>;
  /**
   * What products read: a bf16 copy, or `value` itself where no product reads it or none rounds.
   */
  readonly compute: Tensor<ComputeType>;
}

/** A part of the parameters as contiguous [1, n] tensors, padding (always zero) included. */
export interface FlatSpan {
  readonly values: Tensor<FloatType>;
  /** Asserts that the set was made with gradients. */
  readonly gradients: Tensor<FloatType>;
}

export interface ParameterSetOptions {
  readonly computeType: ComputeType;
  /** Whether gradients have memory. */
  readonly gradients: boolean;
}

/** Parameters start on cache lines even as bf16; zeros fill the gaps. */
const ALIGNMENT_ELEMENTS = 32;
/** Spans are whole rows of this many elements, so that row kernels can share them out. */
const SPAN_ROW_ELEMENTS = 1024;

export class ParameterSet {
  /** In the order of the forward pass. */
  readonly list: readonly Parameter[];
  readonly decayed: FlatSpan;
  readonly undecayed: FlatSpan;
  readonly #device: Device;
  readonly #byName: ReadonlyMap<string, Parameter>;
  /** The values that have bf16 copies, and the copies; null if there are none. */
  readonly #rounding: { readonly from: Tensor<FloatType>; readonly to: Tensor<"bf16"> } | null;

  /**
   * Allocates from `arena`, which must outlive the set. Values are zero until `initialize` or a
   * checkpoint fills them.
   */
  constructor(device: Device, arena: Arena, config: ModelConfig, options: ParameterSetOptions) {
    const { computeType } = options;
    const floatType = computeType === "bf16" ? "f32" : computeType;
    const layout = layOut(config, computeType);
    const allocate = (elements: number): Tensor<FloatType> =>
      arena.allocateZeros(floatType, [1, elements]);
    this.#device = device;
    this.decayed = spanOf(allocate, layout.decayedElements, options.gradients);
    this.undecayed = spanOf(allocate, layout.undecayedElements, options.gradients);
    this.#rounding = null;
    if (computeType === "bf16") {
      const elements = layout.decayedElements - layout.roundedStart;
      const from = flatSlice(this.decayed.values, layout.roundedStart, [1, elements]);
      this.#rounding = { from, to: arena.allocateZeros("bf16", [1, elements]) };
    }
    this.list = layout.places.map((place) => this.#makeParameter(place, layout.roundedStart));
    this.#byName = new Map(this.list.map((parameter) => [parameter.name, parameter]));
  }

  #makeParameter({ declaration, start }: Place, roundedStart: number): Parameter {
    const { name, shape, role } = declaration;
    const decays = role !== "norm";
    const span = decays ? this.decayed : this.undecayed;
    const value = flatSlice(span.values, start, shape);
    const rounded = decays && start >= roundedStart ? this.#rounding : null;
    const compute = rounded === null ? value : flatSlice(rounded.to, start - roundedStart, shape);
    return {
      name,
      shape,
      role,
      decays,
      value,
      get gradient(): Tensor<FloatType> {
        return flatSlice(span.gradients, start, shape);
      },
      compute,
    };
  }

  get(name: string): Parameter {
    return defined(this.#byName.get(name), `parameter ${name}`);
  }

  /**
   * Draw matrices from N(0, std²), each from its own stream of the seed, and set norm gains to 1.
   */
  initialize(seed: number, std: number): void {
    for (const { name, role, value } of this.list) {
      const values = view(value);
      if (role === "norm") values.fill(1);
      else fillNormal(values, new Random(seed, `parameter ${name}`), std);
    }
    this.refreshCompute();
  }

  /** Round the values again for the products. To be called after every change of the values. */
  refreshCompute(): void {
    if (this.#rounding === null) return;
    const { from, to } = this.#rounding;
    castRows(this.#device, { x: inRows(from), out: inRows(to) });
  }

  zeroGradients(): void {
    for (const { gradients } of [this.decayed, this.undecayed]) view(gradients).fill(0);
  }

  /** Number of parameters, padding not counted. */
  get numParameters(): number {
    return this.list.reduce((sum, { value }) => sum + elementCount(value), 0);
  }
}

/** Normal values two at a time (polar method): half the draws that `Random.normal` would make. */
function fillNormal(values: Float32Array | Float64Array, random: Random, std: number): void {
  let index = 0;
  while (index < values.length) {
    const u = 2 * random.uniform() - 1;
    const v = 2 * random.uniform() - 1;
    const square = u * u + v * v;
    if (square === 0 || square >= 1) continue;
    const factor = std * Math.sqrt((-2 * Math.log(square)) / square);
    values[index++] = u * factor;
    if (index < values.length) values[index++] = v * factor;
  }
}

interface Place {
  readonly declaration: ParameterDeclaration;
  /** First element within its span. */
  readonly start: number;
}

interface Layout {
  readonly places: readonly Place[];
  readonly decayedElements: number;
  readonly undecayedElements: number;
  /** First decayed element that products read. */
  readonly roundedStart: number;
}

/**
 * The embedding table comes first and, unless it is the head too, is left out of the bf16 copies:
 * rows are looked up from the values themselves.
 */
function layOut(config: ModelConfig, computeType: ComputeType): Layout {
  const ends = { decayed: 0, undecayed: 0 };
  let roundedStart = 0;
  const places = declareParameters(config).map((declaration): Place => {
    const part = declaration.role === "norm" ? "undecayed" : "decayed";
    const start = ends[part];
    const [rows, columns] = declaration.shape;
    ends[part] = roundUp(start + rows * columns, ALIGNMENT_ELEMENTS);
    if (declaration.role === "embedding") {
      ends[part] = roundUp(ends[part], SPAN_ROW_ELEMENTS);
      if (!config.tieWordEmbeddings) roundedStart = ends[part];
    }
    return { declaration, start };
  });
  return {
    places,
    decayedElements: roundUp(ends.decayed, SPAN_ROW_ELEMENTS),
    undecayedElements: roundUp(ends.undecayed, SPAN_ROW_ELEMENTS),
    roundedStart: computeType === "bf16" ? roundedStart : 0,
  };
}

/** Bytes of the values, of the gradients (as many) and of the bf16 copies, padding included. */
export function parameterBytes(
  config: ModelConfig,
  computeType: ComputeType,
): { readonly values: number; readonly gradients: number; readonly compute: number } {
  const layout = layOut(config, computeType);
  const elements = layout.decayedElements + layout.undecayedElements;
  const values = elements * DTYPE_BYTES[computeType === "bf16" ? "f32" : computeType];
  const rounded = layout.decayedElements - layout.roundedStart;
  const compute = computeType === "bf16" ? rounded * DTYPE_BYTES.bf16 : 0;
  return { values, gradients: values, compute };
}

function spanOf(
  allocate: (elements: number) => Tensor<FloatType>,
  elements: number,
  withGradients: boolean,
): FlatSpan {
  const values = allocate(elements);
  const gradients = withGradients ? allocate(elements) : null;
  return {
    values,
    get gradients(): Tensor<FloatType> {
      return defined(gradients, "memory for gradients (ModelOptions.gradients)");
    },
  };
}

function flatSlice<D extends DType>(
  span: Tensor<D>,
  start: number,
  shape: readonly [number, number],
): Tensor<D> {
  assert(start + shape[0] * shape[1] <= span.columns, `[${shape.join(", ")}] at ${start}`);
  const byteOffset = span.byteOffset + start * DTYPE_BYTES[span.dtype];
  return makeTensor(span.memory, span.dtype, shape, byteOffset);
}

function inRows<D extends DType>(span: Tensor<D>): Tensor<D> {
  return reshape(span, [divExact(span.columns, SPAN_ROW_ELEMENTS), SPAN_ROW_ELEMENTS]);
}
