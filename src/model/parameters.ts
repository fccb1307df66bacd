/**
 * @file The parameters of a model in one span of device memory, their gradients in a second one
 * beside it.
 *
 * The span has three parts: undecayed (norm gains), experts (the routed ones, whose copies over
 * ranks are others than the rest's) and decayed (all other matrices), so that the optimizer, the
 * gradient norm, the EMA and the sums over ranks each run over three flat tensors. What products
 * read is made anew by `refreshCompute` after each change of the values: with bf16 products a third
 * span of rounded copies; under a scaled recipe FP8 codes and scales of the matrices, and bf16
 * copies of the few others that products read.
 *
 * A set that is only to infer keeps no span: stored-parameters.ts makes its list.
 */
import { assert, defined } from "../base/errors.ts";
import { divExact, floorDiv } from "../base/integers.ts";
import { Random } from "../base/random.ts";
import type { Device } from "../device/device.ts";
import { castRows } from "../kernels/cast-rows/contract.ts";
import { quantizeTiles } from "../kernels/quantize-tiles/contract.ts";
import { WEIGHT_AMAX_MIN } from "../numerics/scales.ts";
import type { Arena } from "../tensor/arena.ts";
import type { CodedWeight } from "../tensor/coded-weight.ts";
import { DTYPE_BYTES, type DType, type FloatType } from "../tensor/dtype.ts";
import { allocateScaled, type ScaledTensor } from "../tensor/scaled-tensor.ts";
import { elementCount, makeTensor, reshape, type Tensor } from "../tensor/tensor.ts";
import { view } from "../tensor/view.ts";
import type { ModelConfig } from "./config.ts";
import {
  isScalable,
  type ParameterDeclaration,
  type ParameterRole,
} from "./parameter-declarations.ts";
import {
  type HeldParameters,
  type Layout,
  layOut,
  type Place,
  SPAN_NAMES,
  SPAN_ROW_ELEMENTS,
  type SpanName,
  spanNameOf,
} from "./parameter-layout.ts";
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
  /** Experts that stand one below the other in it; 1 outside of experts. */
  readonly numExperts: number;
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
  /** What products read of a weight that is kept in codes, to infer alone; null elsewhere. */
  readonly coded: CodedWeight | null;
  /** All tensors that hold the parameter, without copies for products. */
  readonly stored: readonly Tensor[];
  readonly recipe: PrecisionRecipe;
}

/** A part of the parameters as contiguous [1, n] tensors, padding (always zero) included. */
export interface FlatSpan {
  readonly values: Tensor<FloatType>;
  /** Asserts that the set was made with gradients. */
  readonly gradients: Tensor<FloatType>;
}

export interface ParameterSetOptions extends HeldParameters {
  readonly recipe: PrecisionRecipe;
  /** Whether gradients have memory. */
  readonly gradients: boolean;
  /** What is kept instead of master values, to infer alone; master values if left out. */
  readonly weights?: WeightFormat | undefined;
}

/** What the optimizer of this rank moves, as the spans it lies in. */
export interface OwnParameters extends Readonly<Record<SpanName, FlatSpan>> {
  /** In the order of the forward pass. */
  readonly list: readonly Parameter[];
}

export class ParameterSet implements OwnParameters {
  /** In the order of the forward pass. */
  readonly list: readonly Parameter[];
  /** null in a set that is only to infer. */
  readonly #spans: Readonly<Record<SpanName, FlatSpan>> | null;
  readonly #own: OwnParameters | null;
  readonly #device: Device;
  readonly #config: ModelConfig;
  readonly #heldExperts: readonly number[] | null;
  readonly #byName: ReadonlyMap<string, Parameter>;
  /** Values that have bf16 copies, and the copies. */
  readonly #rounded: readonly Rounded[];

  /**
   * Allocates from `arena`, which must outlive the set. Values are zero until `initialize` or a
   * checkpoint fills them.
   */
  constructor(device: Device, arena: Arena, config: ModelConfig, options: ParameterSetOptions) {
    const { recipe, weights } = options;
    this.#device = device;
    this.#config = config;
    this.#heldExperts = options.heldExperts ?? null;
    if (weights === undefined) {
      const computeType = computeTypeOf(recipe);
      const floatType = computeType === "bf16" ? "f32" : computeType;
      const layout = layOut(config, options);
      const span = (name: SpanName): FlatSpan => {
        const shape = [1, layout.elements[name]];
        const allocate = (): Tensor<FloatType> => arena.allocateZeros(floatType, shape);
        return spanOf(allocate, options.gradients);
      };
      this.#spans = {
        decayed: span("decayed"),
        undecayed: span("undecayed"),
        experts: span("experts"),
      };
      const list = isScaledRecipe(recipe)
        ? layout.places.map((place) => this.#makeScaled(arena, place, recipe))
        : this.#makePlain(arena, layout, recipe);
      this.list = list.map(({ parameter }) => parameter);
      this.#rounded = list.flatMap(({ rounded }) => (rounded === undefined ? [] : [rounded]));
      this.#own = this.#ownOf(layout, options.part?.copies);
    } else {
      this.#spans = null;
      this.#own = null;
      this.list = storeParameters(arena, config, { ...options, weights });
      this.#rounded = [];
    }
    this.#byName = new Map(this.list.map((parameter) => [parameter.name, parameter]));
  }

  #ownOf(layout: Layout, copies: ReadonlySet<string> | undefined): OwnParameters {
    if (copies === undefined || copies.size === 0) return this;
    const own = (name: SpanName): FlatSpan => beginningOf(this[name], layout.ownElements[name]);
    return {
      list: this.list.filter(({ name }) => !copies.has(name)),
      decayed: own("decayed"),
      undecayed: own("undecayed"),
      experts: own("experts"),
    };
  }

  /** Without the copies; the set itself if it holds none. Asserts that there are master values. */
  get own(): OwnParameters {
    return defined(this.#own, "master values (a model made to infer has none)");
  }

  /** The matrices outside of routed experts. Asserts that there are master values. */
  get decayed(): FlatSpan {
    return defined(this.#spans, "master values (a model made to infer has none)").decayed;
  }

  /** The norm gains. Asserts that there are master values. */
  get undecayed(): FlatSpan {
    return defined(this.#spans, "master values (a model made to infer has none)").undecayed;
  }

  /** The routed experts. Asserts that there are master values. */
  get experts(): FlatSpan {
    return defined(this.#spans, "master values (a model made to infer has none)").experts;
  }

  /** A span of bf16 copies for each span of matrices, if products are in bf16. */
  #makePlain(arena: Arena, layout: Layout, recipe: PrecisionRecipe): Made[] {
    const { roundedStart, elements, places } = layout;
    const copies = new Map<SpanName, Rounded>();
    if (computeTypeOf(recipe) === "bf16") {
      for (const name of ["decayed", "experts"] as const) {
        const count = elements[name] - roundedStart[name];
        const from = flatSlice(this[name].values, roundedStart[name], [1, count]);
        const to = arena.allocateZeros("bf16", [1, count]);
        copies.set(name, { from: inRows(from), to: inRows(to) });
      }
    }
    const unlisted = new Set(copies.keys());
    return places.map(({ declaration, start }): Made => {
      const name = spanNameOf(declaration);
      const rounded = copies.get(name);
      const begin = start - roundedStart[name];
      const compute =
        rounded !== undefined && begin >= 0
          ? flatSlice(flat(rounded.to), begin, declaration.shape)
          : this.#valueOf(declaration, start);
      const parameter = this.#makeParameter({ declaration, start }, { compute, recipe });
      // A span is rounded as a whole: it is listed once.
      return { parameter, rounded: unlisted.delete(name) ? rounded : undefined };
    });
  }

  /** FP8 codes and scales, or a bf16 copy of what else products read. */
  #makeScaled(arena: Arena, place: Place, recipe: PrecisionRecipe): Made {
    const { declaration, start } = place;
    const config = this.#config;
    const { shape, role } = declaration;
    const value = this.#valueOf(declaration, start);
    if (isScalable(declaration)) {
      const groups =
        role === "experts"
          ? { kind: "equal" as const, rows: divExact(shape[0], this.#numExpertsOf(declaration)) }
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

  #valueOf(declaration: ParameterDeclaration, start: number): Tensor<FloatType> {
    return flatSlice(this[spanNameOf(declaration)].values, start, declaration.shape);
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
    const span = this[spanNameOf(declaration)];
    const value = this.#valueOf(declaration, start);
    return {
      name,
      shape,
      role,
      numExperts: this.#numExpertsOf(declaration),
      decays,
      value,
      get gradient(): Tensor<FloatType> {
        return flatSlice(span.gradients, start, shape);
      },
      compute: read.compute,
      scaled: read.scaled ?? null,
      kept: value,
      coded: null,
      stored: [value],
      recipe: read.recipe,
    };
  }

  #numExpertsOf({ role }: ParameterDeclaration): number {
    if (role !== "experts") return 1;
    return this.#heldExperts?.length ?? this.#config.numRoutedExperts;
  }

  get(name: string): Parameter {
    return defined(this.#byName.get(name), `parameter ${name}`);
  }

  /**
   * Where rows of a whole parameter, of one expert where it has experts, begin here: once in each
   * place of an expert; nowhere if they are not held.
   */
  rowStartsOf(name: string, rowStart: number): readonly number[] {
    const parameter = this.#byName.get(name);
    if (parameter === undefined) return [];
    if (parameter.role !== "experts" || this.#heldExperts === null) return [rowStart];
    const rows = divExact(parameter.shape[0], parameter.numExperts);
    const expert = floorDiv(rowStart, rows);
    return this.#heldExperts.flatMap((held, place) =>
      held === expert ? [place * rows + (rowStart - expert * rows)] : [],
    );
  }

  /**
   * Draw matrices from N(0, std²), each from its own stream of the seed, and set norm gains to 1.
   */
  initialize(seed: number, std: number): void {
    for (const { name, role, value } of this.list) {
      const random = new Random(seed, `parameter ${name}`);
      if (role === "norm") view(value).fill(1);
      else if (role === "experts") this.#initializeExperts(value, random, std);
      else fillNormal(view(value), random, std);
    }
    this.refreshCompute();
  }

  /** Of a layer's experts, whose stream goes over all of them, those that are held. */
  #initializeExperts(value: Tensor<FloatType>, random: Random, std: number): void {
    const held = this.#heldExperts;
    if (held === null) {
      fillNormal(view(value), random, std);
      return;
    }
    const each = divExact(elementCount(value), held.length);
    const all = new Float64Array(each * this.#config.numRoutedExperts);
    fillNormal(all, random, std);
    for (const [place, expert] of held.entries()) {
      view(value).set(all.subarray(expert * each, (expert + 1) * each), place * each);
    }
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
    for (const name of SPAN_NAMES) clear(this.#device, this[name].gradients);
  }

  /** Number of parameters, padding not counted. */
  get numParameters(): number {
    return this.list.reduce((sum, { shape }) => sum + shape[0] * shape[1], 0);
  }
}

/** A block that is cleared by all threads at once: a megabyte of f32, which stays in cache. */
const CLEARED_BLOCK = { rows: 256, columns: 1024 } as const;

/** Zeros into a flat tensor: into its first block, and from there by copies into the others. */
function clear(device: Device, flat: Tensor<FloatType>): void {
  const { rows, columns } = CLEARED_BLOCK;
  const size = rows * columns;
  const total = elementCount(flat);
  const rest = total % size;
  const values = view(flat);
  values.fill(0, 0, Math.min(size, total));
  const zeros = total < size ? null : flatSlice(flat, 0, [rows, columns]);
  for (let start = size; zeros !== null && start + size <= total; start += size) {
    castRows(device, { x: zeros, out: flatSlice(flat, start, [rows, columns]) });
  }
  values.fill(0, total - rest);
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

/** Values and their bf16 copies, as rows. */
interface Rounded {
  readonly from: Tensor<FloatType>;
  readonly to: Tensor<"bf16">;
}

/** A parameter, and the values that are rounded for it. */
interface Made {
  readonly parameter: Parameter;
  readonly rounded?: Rounded | undefined;
}

/** What plain products of a recipe read. */
export function computeTypeOf(recipe: PrecisionRecipe): ComputeType {
  if (isScaledRecipe(recipe)) return "bf16";
  return recipe.tensors.weight.format as ComputeType;
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
