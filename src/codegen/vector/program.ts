/**
 * @file A row program: what one row kernel does, as data that knows no processor.
 *
 * A launch has `rows` rows of `columns` columns. Rows are split into tasks (or columns are:
 * `split`), and each row runs `body` once: straight-line steps, and column loops whose steps act on
 * one vector of neighbouring columns at a time. How wide a vector is, and how a ragged end is
 * masked, is the lowering's business. Values are numbered in the order they are recorded (static
 * single assignment); outside loops a value has the same content in every lane.
 *
 * Rules that every lowering keeps, so that all targets agree:
 *   - min(a, b) = a < b ? a : b and max(a, b) = a > b ? a : b: the second where either is NaN;
 *   - row maxima ignore NaN elements and start at −∞; row sums start at 0 and propagate NaN;
 *   - lanes beyond the last column are neither read, nor written, nor summed;
 *   - `fma` is fused where the target can, else a product and a sum;
 *   - the order of a row sum depends on the number of columns (and a loop's limits) alone.
 */

/** A value, by the number of the instruction that makes it. */
export type Value = number;
/** An operand, by its position in the declaration. */
export type OperandIndex = number;

/** Bytes of an element; what the bits mean is up to the recorded instructions. */
export type ElementBytes = 1 | 2 | 4;

/**
 * How an operand lies in memory. Its slots: byteOffset, then a stride in elements.
 *   row       one row of `columns` elements a row of the launch
 *   vector    `columns` elements shared by all rows; written only in one-task launches
 *   perRow    `stride` elements a row of the launch, read or written one by one
 *   partial   one vector of `columns` f32 a task, set to zero before the task's first row
 *   gathered  one row of `columns` elements, chosen by `locate`; a negative index means "absent"
 */
export type OperandKind = "row" | "vector" | "perRow" | "partial" | "gathered";

export interface Operand {
  readonly name: string;
  readonly kind: OperandKind;
  readonly elementBytes: ElementBytes;
}

export type BinaryOp =
  | "add"
  | "sub"
  | "mul"
  | "div"
  | "min"
  | "max"
  | "and"
  | "or"
  | "xor"
  | "integerAdd"
  | "integerSub"
  | "integerMul";

/**
 * Rounding to an integer is to nearest even; out of the i32 range its result is the target's own.
 */
export type UnaryOp = "sqrt" | "roundToInteger" | "toFloat" | "swapPairs";
export type ShiftOp = "shiftLeft" | "shiftRight" | "shiftRightSigned";
/** f32 comparisons are false where either side is NaN; integers compare as signed. */
export type Comparison = "less" | "lessEqual" | "equal" | "integerLess" | "integerEqual";

/** A row reduction made by a column loop; `value` is the number of its result. */
export type Reduction =
  | { readonly kind: "sum" | "max"; readonly a: Value; readonly value: Value }
  | {
      readonly kind: "sumOfProducts";
      readonly a: Value;
      readonly b: Value;
      readonly value: Value;
    };

/**
 * Columns [start, end) of a loop; each end is 0, the column count, or an i32 per-row operand
 * clamped between.
 */
export interface ColumnLoop {
  readonly op: "columns";
  readonly body: readonly Value[];
  readonly reductions: readonly Reduction[];
  readonly start: OperandIndex | null;
  readonly end: OperandIndex | null;
  /** The result of a `locate`: no column runs in rows where it is 0. */
  readonly where: Value | null;
  /**
   * Row operands, read or written, whose next row the loop asks memory for, column by column, where
   * the target can. It pays where the processor does not follow the rows by itself, because they
   * stand apart, are read by an earlier loop, or end in other pages than they begin in.
   */
  readonly ahead: readonly OperandIndex[];
}

export type Instruction =
  | { readonly op: "constant"; readonly bits: number }
  | { readonly op: "scalar"; readonly index: number }
  | { readonly op: BinaryOp; readonly a: Value; readonly b: Value }
  | { readonly op: UnaryOp; readonly a: Value }
  | { readonly op: ShiftOp; readonly a: Value; readonly distance: number }
  /** a·b + c */
  | { readonly op: "fma"; readonly a: Value; readonly b: Value; readonly c: Value }
  /** comparison(a, b) ? x : y, lane by lane */
  | {
      readonly op: "select";
      readonly comparison: Comparison;
      readonly a: Value;
      readonly b: Value;
      readonly x: Value;
      readonly y: Value;
    }
  /** The elements of an operand at the loop's columns, zero-extended to 32 bits. */
  | { readonly op: "load"; readonly operand: OperandIndex }
  /** Stores the low bits of each lane; if they are `rounded` to bf16, of what. */
  | {
      readonly op: "store";
      readonly operand: OperandIndex;
      readonly a: Value;
      readonly rounded?: Value;
    }
  /** Rounds to bf16 and stores: not recorded, a lowering may put it in place of such a store. */
  | { readonly op: "storeRounded"; readonly operand: OperandIndex; readonly a: Value }
  /** Element `element` of a per-row operand, in every lane. */
  | { readonly op: "loadPerRow"; readonly operand: OperandIndex; readonly element: number }
  | {
      readonly op: "storePerRow";
      readonly operand: OperandIndex;
      readonly element: number;
      readonly a: Value;
    }
  /** Column `index[row]` of a row operand, in every lane; 0 where there is no such column. */
  | { readonly op: "loadElement"; readonly operand: OperandIndex; readonly index: OperandIndex }
  /** Writes that column; nothing where there is no such column. */
  | {
      readonly op: "storeElement";
      readonly operand: OperandIndex;
      readonly index: OperandIndex;
      readonly a: Value;
    }
  /**
   * Points `operand` at the row that element `element` of `index` names; the value is −1 if
   * present, else 0.
   */
  | {
      readonly op: "locate";
      readonly operand: OperandIndex;
      readonly index: OperandIndex;
      readonly element: number;
    }
  /** The column's number, as an integer. */
  | { readonly op: "columnIndex" }
  /** The row's number in the launch, as an integer in every lane. */
  | { readonly op: "rowIndex" }
  /** The result of a reduction; made by the loop that holds it. */
  | { readonly op: "reduced" }
  | ColumnLoop;

export interface RowProgram {
  readonly name: string;
  /** What a task owns: some rows with all their columns, or some columns of all rows. */
  readonly split: "rows" | "columns";
  readonly operands: readonly Operand[];
  readonly scalars: readonly string[];
  readonly instructions: readonly Instruction[];
  /** Constants and scalars: the same in every row. */
  readonly uniforms: readonly Value[];
  readonly body: readonly Value[];
}

const HEADER_SLOTS = 3;
const SLOTS_PER_OPERAND = 2;

/** Names of a launch's slots, in order. */
export function slotNames(program: RowProgram): string[] {
  return [
    ...["rows", "columns", program.split === "rows" ? "rowsPerTask" : "columnsPerTask"],
    ...program.operands.flatMap(({ name }) => [`${name}.byteOffset`, `${name}.stride`]),
    ...program.scalars,
  ];
}

/** Position of an operand's first slot. */
export function operandSlot(operand: OperandIndex): number {
  return HEADER_SLOTS + SLOTS_PER_OPERAND * operand;
}

/** Position of a scalar's slot. */
export function scalarSlot(program: RowProgram, index: number): number {
  return HEADER_SLOTS + SLOTS_PER_OPERAND * program.operands.length + index;
}

/** The values an instruction reads. */
export function inputsOf(instruction: Instruction): Value[] {
  switch (instruction.op) {
    case "fma":
      return [instruction.a, instruction.b, instruction.c];
    case "select":
      return [instruction.a, instruction.b, instruction.x, instruction.y];
    case "columns":
      return instruction.where === null ? [] : [instruction.where];
    case "constant":
    case "scalar":
    case "load":
    case "loadPerRow":
    case "loadElement":
    case "locate":
    case "columnIndex":
    case "rowIndex":
    case "reduced":
      return [];
    default:
      return "b" in instruction ? [instruction.a, instruction.b] : [instruction.a];
  }
}
