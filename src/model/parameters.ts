/**
 * @file The parameters of a model in one span of device memory, their gradients in a second one
 * beside it.
 *
 * The span has two parts, decayed (matrices) and undecayed (norm gains), so that the optimizer, the
 * gradient norm, the EMA and the averaging over ranks each run over two flat tensors. What products
 * read is made anew by `refreshCompute` after each change of the values: with bf16 products a third
 * span of rounded copies; under a scaled recipe FP8 codes and scales of the matrices, and bf16
 * copies of the few others that products read.
 *
 * A set that is only to infer keeps no span: stored-parameters.ts makes its list.
 */
import { assert, defined } from "../base/errors.ts";
import { divExact, roundUp } from "../base/integers.ts";
import { Random } from "../base/random.ts";
import type { Device } from "../device/device.ts";
import { castRows } from "../kernels/cast-rows/contract.ts";
import { quantizeTiles } from "../kernels/quantize-tiles/contract.ts";
import { WEIGHT_AMAX_MIN } from "../numerics/scales.ts";
import type { Arena } from "../tensor/arena.ts";
import { DTYPE_BYTES, type DType, type FloatType } from "../tensor/dtype.ts";
import { allocateScaled, type ScaledTensor, scaledBytes } from "../tensor/scaled-tensor.ts";
import { elementCount, makeTensor, reshape, type Tensor } from "../tensor/tensor.ts";
import { view } from "../tensor/view.ts";
import type { ModelConfig } from "./config.ts";
import {
  declareParameters,
  isScalable,
  type ParameterDeclaration,
  type ParameterRole,
} from "./parameter-declarations.ts";
import { isScaledRecipe, type PrecisionRecipe } from "./precision-recipe.ts";
import { scaledShape } from "./scaled-shape.ts";
import { storeParameters } from "./stored-parameters.ts";
import type { WeightFormat } from "./weight-format.ts";

/** What operands of matrix products are stored in: bf16, or the float type unrounded. */
export type ComputeType = "bf16" | FloatType;

export interface Parameter {
  readonly name: string;
  /** [out, in]; a norm gain is [1, width]. */
  readonly shape: readonly [rows: number, columns: number];
  readonly role: ParameterRole;
  /** Whether weight decay applies: to everything but the norm gains. */
  readonly decays: boolean;
  /** The master values. Asserts that the set was made with them. */
  readonly value: Tensor<FloatType>;
  /** Asserts that the set was made with gradients. */
  readonly gradient: Tensor<FloatType>;
  /**
   * What products read: a bf16 copy, or `value` itself where no product reads it, where none
   * rounds, or where they read `scaled`.
   */
  readonly compute: Tensor<ComputeType>;
  /** What products read under a scaled recipe; null where they read `compute`. */
  readonly scaled: ScaledTensor | null;
  /**
   * What rows are looked up from and attention absorbs: the master values, or what is kept instead
   * of them.
   */
  readonly kept: Tensor<ComputeType>;
  readonly recipe: PrecisionRecipe;
}

/** A part of the parameters as contiguous [1, n] tensors, padding (always zero) included. */
export interface FlatSpan {
  readonly values: Tensor<FloatType>;
  /** Asserts that the set was made with gradients. */
  readonly gradients: Tensor<FloatType>;
}

export interface ParameterSetOptions {
  readonly recipe: PrecisionRecipe;
  /** Whether gradients have memory. */
  readonly gradients: boolean;
  /** What is kept instead of master values, to infer alone; master values if left out. */
  readonly weights?: WeightFormat | undefined;
  /** Of all the model's, those that are held here; all if left out. */
  readonly part?: ParameterPart;
}

/** A rank's share of a model's parameters. */
export interface ParameterPart {
  readonly names: ReadonlySet<string>;
  /**
   * Held, but moved by the optimizer of another rank; they stand behind the others in both spans.
   */
  readonly copies: ReadonlySet<string>;
}

/** What the optimizer of this rank moves, as the spans it lies in. */
export interface OwnParameters {
  /** In the order of the forward pass. */
  readonly list: readonly Parameter[];
  readonly decayed: FlatSpan;
  readonly undecayed: FlatSpan;
}

/** Parameters start on cache lines even as bf16; zeros fill the gaps. */
const ALIGNMENT_ELEMENTS = 32;
/** Spans are whole rows of this many elements, so that row kernels can share them out. */
const SPAN_ROW_ELEMENTS = 1024;

export class ParameterSet implements OwnParameters {
  /** In the order of the forward pass. */
  readonly list: readonly Parameter[];
  /** null in a set that is only to infer. */
  readonly #spans: { readonly decayed: FlatSpan; readonly undecayed: FlatSpan } | null;
  readonly #own: OwnParameters | null;
  readonly #device: Device;
  readonly #byName: ReadonlyMap<string, Parameter>;
  /** Values that have bf16 copies, and the copies. */
  readonly #rounded: readonly { readonly from: Tensor<FloatType>; readonly to: Tensor<"bf16"> }[];

  /**
   * Allocates from `arena`, which must outlive the set. Values are zero until `initialize` or a
   * checkpoint fills them.
   */
  constructor(device: Device, arena: Arena, config: ModelConfig, options: ParameterSetOptions) {
    const { recipe, weights } = options;
    this.#device = device;
    if (weights === undefined) {
      const computeType = computeTypeOf(recipe);
      const floatType = computeType === "bf16" ? "f32" : computeType;
      const layout = layOut(config, computeType, options.part);
      const span = (elements: number): FlatSpan => {
        const allocate = (): Tensor<FloatType> => arena.allocateZeros(floatType, [1, elements]);
        return spanOf(allocate, options.gradients);
      };
      this.#spans = {
        decayed: span(layout.decayedElements),
        undecayed: span(layout.undecayedElements),
      };
      const list = isScaledRecipe(recipe)
        ? layout.places.map((place) => this.#makeScaled(arena, place, config, recipe))
        : this.#makePlain(arena, layout, recipe);
      this.list = list.map(({ parameter }) => parameter);
      this.#rounded = list.flatMap(({ rounded }) => (rounded === undefined ? [] : [rounded]));
      this.#own = this.#ownOf(layout, options.part?.copies);
    } else {
      this.#spans = null;
      this.#own = null;
      this.list = storeParameters(arena, config, { recipe, weights });
      this.#rounded = [];
    }
    this.#byName = new Map(this.list.map((parameter) => [parameter.name, parameter]));
  }

  #ownOf(layout: Layout, copies: ReadonlySet<string> | undefined): OwnParameters {
    if (copies === undefined || copies.size === 0) return this;
    const { decayed, undecayed } = this;
    return {
      list: this.list.filter(({ name }) => !copies.has(name)),
      decayed: beginningOf(decayed, layout.ownElements.decayed),
      undecayed: beginningOf(undecayed, layout.ownElements.undecayed),
    };
  }

  /** Without the copies; the set itself if it holds none. Asserts that there are master values. */
  get own(): OwnParameters {
    return defined(this.#own, "master values (a model made to infer has none)");
  }

  /** The matrices. Asserts that there are master values. */
  get decayed(): FlatSpan {
    return defined(this.#spans, "master values (a model made to infer has none)").decayed;
  }

  /** The norm gains. Asserts that there are master values. */
  get undecayed(): FlatSpan {
    return defined(this.#spans, "master values (a model made to infer has none)").undecayed;
  }

  /** One span of bf16 copies, if products are in bf16. */
  #makePlain(arena: Arena, layout: Layout, recipe: PrecisionRecipe): Made[] {
    const { roundedStart, decayedElements, places } = layout;
    let rounded: Made["rounded"];
    if (computeTypeOf(recipe) === "bf16") {
      const elements = decayedElements - roundedStart;
      const from = flatSlice(this.decayed.values, roundedStart, [1, elements]);
      rounded = { from: inRows(from), to: inRows(arena.allocateZeros("bf16", [1, elements])) };
    }
    const copies = rounded === undefined ? undefined : flat(rounded.to);
    return places.map(({ declaration, start }, index): Made => {
      const value = this.#valueOf(declaration, start);
      const hasCopy = copies !== undefined && declaration.role !== "norm" && start >= roundedStart;
      const compute = hasCopy ? flatSlice(copies, start - roundedStart, declaration.shape) : value;
      const parameter = this.#makeParameter({ declaration, start }, { compute, recipe });
      // The span is rounded as a whole: it is listed once.
      return { parameter, rounded: index === 0 ? rounded : undefined };
    });
  }

  /** FP8 codes and scales, or a bf16 copy of what else products read. */
  #makeScaled(arena: Arena, place: Place, config: ModelConfig, recipe: PrecisionRecipe): Made {
    const { declaration, start } = place;
    const { shape, role } = declaration;
    const value = this.#valueOf(declaration, start);
    if (isScalable(declaration)) {
      const groups =
        role === "experts"
          ? { kind: "equal" as const, rows: divExact(shape[0], config.numRoutedExperts) }
          : { kind: "none" as const };
      const scaled = allocateScaled(
        arena,
        scaledShape(recipe.tensors.weight, shape[0], shape[1], groups),
      );
      return { parameter: this.#makeParameter(place, { compute: value, scaled, recipe }) };
    }
    const isLookedUp = role === "embedding" && !config.tieWordEmbeddings;
    if (role === "norm" || isLookedUp) {
      return { parameter: this.#makeParameter(place, { compute: value, recipe }) };
    }
    const copy = arena.allocateZeros("bf16", shape);
    const parameter = this.#makeParameter(place, { compute: copy, recipe });
    return { parameter, rounded: { from: value, to: copy } };
  }

  #valueOf({ role, shape }: ParameterDeclaration, start: number): Tensor<FloatType> {
    return flatSlice((role === "norm" ? this.undecayed : this.decayed).values, start, shape);
  }

  #makeParameter(
    { declaration, start }: Place,
    read: {
      readonly compute: Tensor<ComputeType>;
      readonly scaled?: ScaledTensor;
      readonly recipe: PrecisionRecipe;
    },
  ): Parameter {
    const { name, shape, role } = declaration;
    const decays = role !== "norm";
    const span = decays ? this.decayed : this.undecayed;
    const value = this.#valueOf(declaration, start);
    return {
      name,
      shape,
      role,
      decays,
      value,
      get gradient(): Tensor<FloatType> {
        return flatSlice(span.gradients, start, shape);
      },
      compute: read.compute,
      scaled: read.scaled ?? null,
      kept: value,
      recipe: read.recipe,
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
    for (const { from, to } of this.#rounded) castRows(this.#device, { x: from, out: to });
    for (const parameter of this.list) {
      const { scaled, recipe } = parameter;
      if (scaled === null) continue;
      const powerOfTwo = recipe.tensors.weight.scales === "powerOfTwo";
      const x = parameter.value as Tensor<"f32">;
      quantizeTiles(this.#device, { x, out: scaled, amaxMin: WEIGHT_AMAX_MIN, powerOfTwo });
    }
  }

  zeroGradients(): void {
    for (const { gradients } of [this.decayed, this.undecayed]) view(gradients).fill(0);
  }

  /** Number of parameters, padding not counted. */
  get numParameters(): number {
    return this.list.reduce((sum, { shape }) => sum + shape[0] * shape[1], 0);
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

/** A parameter, and the values that are rounded for it. */
interface Made {
  readonly parameter: Parameter;
  readonly rounded?: { readonly from: Tensor<FloatType>; readonly to: Tensor<"bf16"> } | undefined;
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
  /** Of each span, how much the optimizer moves here. */
  readonly ownElements: Readonly<Record<"decayed" | "undecayed", number>>;
  /** First decayed element that products read. */
  readonly roundedStart: number;
}

/**
 * The embedding table comes first and, unless it is the head too, is left out of the bf16 copies:
 * rows are looked up from the values themselves. (Among copies of other ranks' parameters it may
 * stand elsewhere and is rounded for nothing.)
 */
function layOut(config: ModelConfig, computeType: ComputeType, part?: ParameterPart): Layout {
  const ends = { decayed: 0, undecayed: 0 };
  let roundedStart = 0;
  const starts = new Map<string, number>();
  const place = ({ name, role, shape }: ParameterDeclaration): void => {
    const span = role === "norm" ? "undecayed" : "decayed";
    const start = ends[span];
    const [rows, columns] = shape;
    ends[span] = roundUp(start + rows * columns, ALIGNMENT_ELEMENTS);
    if (role === "embedding") {
      ends[span] = roundUp(ends[span], SPAN_ROW_ELEMENTS);
      if (!config.tieWordEmbeddings && start === 0) roundedStart = ends[span];
    }
    starts.set(name, start);
  };
  const close = (): { decayed: number; undecayed: number } => {
    ends.decayed = roundUp(ends.decayed, SPAN_ROW_ELEMENTS);
    ends.undecayed = roundUp(ends.undecayed, SPAN_ROW_ELEMENTS);
    return { ...ends };
  };
  const held = declareParameters(config).filter(({ name }) => part?.names.has(name) ?? true);
  const isCopy = ({ name }: ParameterDeclaration): boolean => part?.copies.has(name) ?? false;
  for (const declaration of held) if (!isCopy(declaration)) place(declaration);
  const ownElements = close();
  for (const declaration of held) if (isCopy(declaration)) place(declaration);
  close();
  return {
    places: held.map((declaration) => {
      return { declaration, start: defined(starts.get(declaration.name), "a start") };
    }),
    decayedElements: ends.decayed,
    undecayedElements: ends.undecayed,
    ownElements,
    roundedStart: computeType === "bf16" ? roundedStart : 0,
  };
}

/** What plain products of a recipe read. */
export function computeTypeOf(recipe: PrecisionRecipe): ComputeType {
  if (isScaledRecipe(recipe)) return "bf16";
  return recipe.tensors.weight.format as ComputeType;
}

/**
 * Bytes of the values, of the gradients (as many) and of what products read beside them, padding of
 * the spans included.
 */
export function parameterBytes(
  config: ModelConfig,
  recipe: PrecisionRecipe,
): { readonly values: number; readonly gradients: number; readonly compute: number } {
  const computeType = computeTypeOf(recipe);
  const layout = layOut(config, computeType);
  const elements = layout.decayedElements + layout.undecayedElements;
  const values = elements * DTYPE_BYTES[computeType === "bf16" ? "f32" : computeType];
  const rounded = layout.decayedElements - layout.roundedStart;
  const plain = computeType === "bf16" ? rounded * DTYPE_BYTES.bf16 : 0;
  const compute = isScaledRecipe(recipe) ? scaledComputeBytes(config, recipe) : plain;
  return { values, gradients: values, compute };
}

/** FP8 weights and their scales, and bf16 copies of what else products read. */
function scaledComputeBytes(config: ModelConfig, recipe: PrecisionRecipe): number {
  const copies = declareParameters(config).reduce((sum, declaration) => {
    const { role, shape } = declaration;
    const isLookedUp = role === "embedding" && !config.tieWordEmbeddings;
    if (role === "norm" || isLookedUp || isScalable(declaration)) return sum;
    return sum + shape[0] * shape[1] * DTYPE_BYTES.bf16;
  }, 0);
  return copies + scaledWeightBytes(config, recipe).bytes;
}

/** The weights that a scaled recipe stores in FP8: how many values, and the bytes with scales. */
export function scaledWeightBytes(
  config: ModelConfig,
  { tensors }: PrecisionRecipe,
): { readonly count: number; readonly bytes: number } {
  let [count, bytes] = [0, 0];
  for (const declaration of declareParameters(config).filter(isScalable)) {
    const { role, shape } = declaration;
    const matrices = role === "experts" ? config.numRoutedExperts : 1;
    const one = scaledShape(tensors.weight, divExact(shape[0], matrices), shape[1]);
    count += shape[0] * shape[1];
    bytes += matrices * scaledBytes(one);
  }
  return { count, bytes };
}

function spanOf(allocate: () => Tensor<FloatType>, withGradients: boolean): FlatSpan {
  const values = allocate();
  const gradients = withGradients ? allocate() : null;
  return {
    values,
    get gradients(): Tensor<FloatType> {
      return defined(gradients, "memory for gradients (ModelOptions.gradients)");
    },
  };
}

function beginningOf(span: FlatSpan, elements: number): FlatSpan {
  return {
    values: flatSlice(span.values, 0, [1, elements]),
    get gradients(): Tensor<FloatType> {
      return flatSlice(span.gradients, 0, [1, elements]);
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

function flat<D extends DType>(span: Tensor<D>): Tensor<D> {
  return reshape(span, [1, elementCount(span)]);
}

function inRows<D extends DType>(span: Tensor<D>): Tensor<D> {
  return reshape(span, [divExact(span.columns, SPAN_ROW_ELEMENTS), SPAN_ROW_ELEMENTS]);
}
