/**
 * @file Records a row program: a kernel's body runs once against a `Recorder`, and every call
 * becomes an instruction.
 *
 *     const meanSquare = v.columns(() => ({ sum: v.sumOfProducts(v.load(x), v.load(x)) }));
 *
 * Constants are pooled. Elements of 16 bits are bf16 floats: widened after a load, rounded to
 * nearest even before a store (NaN stays NaN), in integer arithmetic, so that every target stores
 * the same bits. Elements of 8 bits and `loadBits`/`storeBits` are raw.
 */
import { assert } from "../../base/errors.ts";
import type {
  BinaryOp,
  Comparison,
  ElementBytes,
  Instruction,
  Operand,
  OperandIndex,
  OperandKind,
  Reduction,
  RowProgram,
  Value,
} from "./program.ts";

export type OperandDType = "f32" | "bf16" | "i32" | "u8";

/** An operand as a kernel declares it. */
export interface OperandDeclaration {
  readonly kind: OperandKind;
  readonly dtype: OperandDType;
}

/** A row kernel's operands, scalars and what it does with a row. */
export interface RowProgramDeclaration<
  Operands extends Readonly<Record<string, OperandDeclaration>>,
  Scalars extends string,
> {
  readonly name: string;
  readonly split?: "rows" | "columns";
  /** In the order of their slots. */
  readonly operands: Operands;
  readonly scalars: readonly Scalars[];
  readonly body: (
    recorder: Recorder,
    operands: { readonly [Name in keyof Operands]: OperandIndex },
    scalars: Readonly<Record<Scalars, Value>>,
  ) => void;
}

/** A comparison waiting for `select`. */
export interface Condition {
  readonly comparison: Comparison;
  readonly a: Value;
  readonly b: Value;
}

/** A reduction waiting for its loop to end. */
export type PendingReduction =
  | { readonly kind: "sum" | "max"; readonly a: Value }
  | { readonly kind: "sumOfProducts"; readonly a: Value; readonly b: Value };

export interface LoopLimits {
  /** A per-row i32 operand: columns before it are left out. */
  readonly start?: OperandIndex;
  /** A per-row i32 operand: columns from it on are left out. */
  readonly end?: OperandIndex;
  /** A gathered operand: no column runs in rows where it is absent. */
  readonly where?: OperandIndex;
  /** Row operands whose next row to fetch meanwhile. */
  readonly ahead?: readonly OperandIndex[];
}

const ELEMENT_BYTES: Record<OperandDType, ElementBytes> = { f32: 4, bf16: 2, i32: 4, u8: 1 };
const SIGN_BIT = -0x80000000;
/** Just below half of bf16's last place in float32 bits; an odd last place adds one more. */
const BF16_ROUNDING = 0x7fff;
const BF16_QUIET_BIT = 0x40;

/** Runs the declaration's body once and returns what it did. */
export function rowProgram<
  Operands extends Readonly<Record<string, OperandDeclaration>>,
  Scalars extends string,
>(declaration: RowProgramDeclaration<Operands, Scalars>): RowProgram {
  const { name, split = "rows", scalars } = declaration;
  const entries = Object.entries<OperandDeclaration>(declaration.operands);
  const operands = entries.map(
    ([operand, { kind, dtype }]): Operand => ({
      ...{ name: operand, kind, elementBytes: ELEMENT_BYTES[dtype] },
    }),
  );
  const dtypes = entries.map(([, { dtype }]) => dtype);
  const recorder = new Recorder(name, operands, dtypes, split);
  const values = scalars.map((scalar, index) => [scalar, recorder.scalar(index)]);
  declaration.body(
    recorder,
    Object.fromEntries(entries.map(([operand], index) => [operand, index])) as {
      readonly [Name in keyof Operands]: OperandIndex;
    },
    Object.fromEntries(values) as Record<Scalars, Value>,
  );
  return recorder.finish(scalars);
}

const floatWord = new Float32Array(1);
const integerWord = new Int32Array(floatWord.buffer);

/** The instructions recorded so far, and the methods that record more. */
export class Recorder {
  readonly #name: string;
  readonly #operands: readonly Operand[];
  readonly #dtypes: readonly OperandDType[];
  readonly #split: "rows" | "columns";
  readonly #instructions: Instruction[] = [];
  readonly #uniforms: Value[] = [];
  readonly #constants = new Map<number, Value>();
  /** The mask of each gathered operand's latest `locate`. */
  readonly #presence = new Map<OperandIndex, Value>();
  readonly #body: Value[] = [];
  #loop: { readonly body: Value[]; readonly where: OperandIndex | null } | null = null;

  constructor(
    name: string,
    operands: readonly Operand[],
    dtypes: readonly OperandDType[],
    split: "rows" | "columns",
  ) {
    this.#name = name;
    this.#operands = operands;
    this.#dtypes = dtypes;
    this.#split = split;
  }

  finish(scalars: readonly string[]): RowProgram {
    return {
      name: this.#name,
      split: this.#split,
      operands: this.#operands,
      scalars,
      instructions: this.#instructions,
      uniforms: this.#uniforms,
      body: this.#body,
    };
  }

  // Constants and scalars.

  /** A f32 constant. */
  float(value: number): Value {
    floatWord[0] = value;
    return this.integer(integerWord[0]!);
  }

  /** A constant of 32 bits. */
  integer(bits: number): Value {
    const known = this.#constants.get(bits | 0);
    if (known !== undefined) return known;
    const value = this.#uniform({ op: "constant", bits: bits | 0 });
    this.#constants.set(bits | 0, value);
    return value;
  }

  scalar(index: number): Value {
    return this.#uniform({ op: "scalar", index });
  }

  // Arithmetic, lane by lane.

  add(a: Value, b: Value): Value {
    return this.binary("add", a, b);
  }

  sub(a: Value, b: Value): Value {
    return this.binary("sub", a, b);
  }

  mul(a: Value, b: Value): Value {
    return this.binary("mul", a, b);
  }

  div(a: Value, b: Value): Value {
    return this.binary("div", a, b);
  }

  /** a < b ? a : b */
  min(a: Value, b: Value): Value {
    return this.binary("min", a, b);
  }

  /** a > b ? a : b */
  max(a: Value, b: Value): Value {
    return this.binary("max", a, b);
  }

  /** a·b + c */
  fma(a: Value, b: Value, c: Value): Value {
    return this.#record({ op: "fma", a, b, c });
  }

  sqrt(a: Value): Value {
    return this.#record({ op: "sqrt", a });
  }

  abs(a: Value): Value {
    return this.and(a, this.integer(~SIGN_BIT));
  }

  neg(a: Value): Value {
    return this.binary("xor", a, this.integer(SIGN_BIT));
  }

  and(a: Value, b: Value): Value {
    return this.binary("and", a, b);
  }

  or(a: Value, b: Value): Value {
    return this.binary("or", a, b);
  }

  xor(a: Value, b: Value): Value {
    return this.binary("xor", a, b);
  }

  integerAdd(a: Value, b: Value): Value {
    return this.binary("integerAdd", a, b);
  }

  integerSub(a: Value, b: Value): Value {
    return this.binary("integerSub", a, b);
  }

  /** The low 32 bits of the product. */
  integerMul(a: Value, b: Value): Value {
    return this.binary("integerMul", a, b);
  }

  shiftLeft(a: Value, distance: number): Value {
    return this.#record({ op: "shiftLeft", a, distance });
  }

  shiftRight(a: Value, distance: number): Value {
    return this.#record({ op: "shiftRight", a, distance });
  }

  shiftRightSigned(a: Value, distance: number): Value {
    return this.#record({ op: "shiftRightSigned", a, distance });
  }

  /** To the nearest integer, ties to even; |a| < 2³¹. */
  roundToInteger(a: Value): Value {
    return this.#record({ op: "roundToInteger", a });
  }

  toFloat(a: Value): Value {
    return this.#record({ op: "toFloat", a });
  }

  /** Exchanges columns 2i and 2i + 1; the column count must be even. */
  swapPairs(a: Value): Value {
    return this.#record({ op: "swapPairs", a });
  }

  less(a: Value, b: Value): Condition {
    return { comparison: "less", a, b };
  }

  lessEqual(a: Value, b: Value): Condition {
    return { comparison: "lessEqual", a, b };
  }

  equal(a: Value, b: Value): Condition {
    return { comparison: "equal", a, b };
  }

  integerLess(a: Value, b: Value): Condition {
    return { comparison: "integerLess", a, b };
  }

  integerEqual(a: Value, b: Value): Condition {
    return { comparison: "integerEqual", a, b };
  }

  /** condition ? x : y */
  select(condition: Condition, x: Value, y: Value): Value {
    return this.#record({ op: "select", ...condition, x, y });
  }

  /** Records any two-operand instruction. */
  binary(op: BinaryOp, a: Value, b: Value): Value {
    return this.#record({ op, a, b });
  }

  // Memory.

  /**
   * The operand's elements at the loop's columns: f32 (bf16 widened), or raw bits. Zero where
   * absent.
   */
  load(operand: OperandIndex): Value {
    const bits = this.loadBits(operand);
    return this.#dtypes[operand] === "bf16" ? this.shiftLeft(bits, 16) : bits;
  }

  /** The operand's elements, zero-extended to 32 bits. */
  loadBits(operand: OperandIndex): Value {
    assert(this.#loop !== null, `${this.#name}: load only inside a column loop`);
    const bits = this.#record({ op: "load", operand });
    if (this.#operand(operand).kind !== "gathered" || this.#loop.where === operand) return bits;
    return this.and(bits, this.#presenceOf(operand));
  }

  /** Writes f32 values (rounded where the operand is bf16). */
  store(operand: OperandIndex, a: Value): void {
    if (this.#dtypes[operand] === "bf16") this.#store(operand, this.#bf16Bits(a), a);
    else this.storeBits(operand, a);
  }

  /** Writes the low bits of each lane. */
  storeBits(operand: OperandIndex, a: Value): void {
    this.#store(operand, a);
  }

  #store(operand: OperandIndex, a: Value, rounded?: Value): void {
    assert(this.#loop !== null, `${this.#name}: store only inside a column loop`);
    const { kind } = this.#operand(operand);
    assert(
      kind !== "gathered" || this.#loop.where === operand,
      `${this.#name}: a gathered store stands in a loop with { where } on that operand`,
    );
    this.#record({ op: "store", operand, a, ...(rounded === undefined ? {} : { rounded }) });
  }

  /** Element `element` of a per-row operand, in every lane. */
  loadPerRow(operand: OperandIndex, element = 0): Value {
    return this.#record({ op: "loadPerRow", operand, element });
  }

  storePerRow(operand: OperandIndex, a: Value, element = 0): void {
    assert(this.#split === "rows", `${this.#name}: per-row stores need whole rows`);
    this.#record({ op: "storePerRow", operand, element, a });
  }

  /** Column `index[row]` of a f32 row operand, in every lane; 0 where the index is no column. */
  loadElement(operand: OperandIndex, index: OperandIndex): Value {
    this.#assertElement(operand);
    return this.#record({ op: "loadElement", operand, index });
  }

  /** Writes column `index[row]`; nothing where the index is no column. */
  storeElement(operand: OperandIndex, index: OperandIndex, a: Value): void {
    this.#assertElement(operand);
    this.#record({ op: "storeElement", operand, index, a });
  }

  /**
   * Points a gathered operand at the row that element `element` of the i32 operand `index` names.
   */
  locate(operand: OperandIndex, index: OperandIndex, element = 0): void {
    assert(this.#operand(operand).kind === "gathered", `${this.#name}: locate a gathered operand`);
    assert(this.#loop === null, `${this.#name}: locate only outside column loops`);
    const value = this.#record({ op: "locate", operand, index, element });
    this.#presence.set(operand, value);
  }

  columnIndex(): Value {
    assert(this.#loop !== null, `${this.#name}: columnIndex only inside a column loop`);
    assert(this.#split === "rows", `${this.#name}: columnIndex needs whole rows`);
    return this.#record({ op: "columnIndex" });
  }

  rowIndex(): Value {
    assert(this.#loop === null, `${this.#name}: rowIndex only outside column loops`);
    return this.#record({ op: "rowIndex" });
  }

  // Column loops.

  sum(a: Value): PendingReduction {
    return { kind: "sum", a };
  }

  /** The largest element; NaN elements are ignored, and an empty row gives −∞. */
  rowMax(a: Value): PendingReduction {
    return { kind: "max", a };
  }

  sumOfProducts(a: Value, b: Value): PendingReduction {
    return { kind: "sumOfProducts", a, b };
  }

  /**
   * Runs `body` over the columns; the reductions it returns are the loop's results, the same in
   * every lane.
   */
  // biome-ignore lint/suspicious/noConfusingVoidType: a body without reductions returns nothing
  columns<Reductions extends Readonly<Record<string, PendingReduction>> | void>(
    body: () => Reductions,
    limits: LoopLimits = {},
  ): { readonly [Name in keyof Reductions]: Value } {
    assert(this.#loop === null, `${this.#name}: column loops do not nest`);
    const { start = null, end = null, where, ahead = [] } = limits;
    const presence = where === undefined ? null : this.#presenceOf(where);
    const loop = { body: [] as Value[], where: where ?? null };
    this.#loop = loop;
    const pending = Object.entries<PendingReduction>(body() ?? {});
    this.#loop = null;
    assert(
      pending.length === 0 || this.#split === "rows",
      `${this.#name}: reductions need whole rows`,
    );
    const results: [string, Value][] = [];
    const reductions = pending.map(([name, reduction]): Reduction => {
      const value = this.#push({ op: "reduced" });
      results.push([name, value]);
      return { ...reduction, value };
    });
    assert(
      ahead.every((operand) => this.#operand(operand).kind === "row"),
      `${this.#name}: only row operands have a next row`,
    );
    const range = { start, end, where: presence, ahead };
    this.#record({ op: "columns", body: loop.body, reductions, ...range });
    return Object.fromEntries(results) as { readonly [Name in keyof Reductions]: Value };
  }

  /** Round to nearest even in integers: NaN keeps its sign and payload's top, and becomes quiet. */
  #bf16Bits(a: Value): Value {
    const top = this.shiftRight(a, 16);
    const odd = this.and(top, this.integer(1));
    const rounded = this.integerAdd(this.integerAdd(a, this.integer(BF16_ROUNDING)), odd);
    const quiet = this.or(top, this.integer(BF16_QUIET_BIT));
    return this.select(this.equal(a, a), this.shiftRight(rounded, 16), quiet);
  }

  #assertElement(operand: OperandIndex): void {
    const { kind, elementBytes } = this.#operand(operand);
    assert(kind === "row" && elementBytes === 4, `${this.#name}: elements of 32-bit rows only`);
    assert(this.#loop === null, `${this.#name}: single elements only outside column loops`);
    assert(this.#split === "rows", `${this.#name}: single elements need whole rows`);
  }

  #presenceOf(operand: OperandIndex): Value {
    const presence = this.#presence.get(operand);
    assert(presence !== undefined, `${this.#name}: locate comes before a use of its row`);
    return presence;
  }

  #operand(index: OperandIndex): Operand {
    const operand = this.#operands[index];
    assert(operand !== undefined, `${this.#name}: no operand ${index}`);
    return operand;
  }

  #uniform(instruction: Instruction): Value {
    const value = this.#push(instruction);
    this.#uniforms.push(value);
    return value;
  }

  #record(instruction: Instruction): Value {
    const value = this.#push(instruction);
    (this.#loop?.body ?? this.#body).push(value);
    return value;
  }

  #push(instruction: Instruction): Value {
    this.#instructions.push(instruction);
    return this.#instructions.length - 1;
  }
}
