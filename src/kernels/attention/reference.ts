/**
 * @file Causal attention, plainly: one query at a time, f64 sums. The oracle for every
 * implementation. The bf16 variant rounds what its products read.
 */
import type { KernelBody, ThreadContext } from "../../device/program.ts";
import { roundToBf16 } from "../../numerics/bf16.ts";
import type { FloatType } from "../../tensor/dtype.ts";
import { DTYPE_BYTES } from "../../tensor/dtype.ts";
import { type Elements, elementsAt } from "../views.ts";
import { type HeadTask, headTask, type Place } from "./heads.ts";

type Row = Float64Array<ArrayBuffer>;

/** Reads and writes rows of places as f64 arrays; what it reads is rounded as products want it. */
class Rows {
  /** Of the tensors. */
  readonly dtype: FloatType;
  /** To what the variant's products read. */
  readonly round: (value: number) => number;
  readonly #context: ThreadContext;

  constructor(context: ThreadContext, variant: string) {
    this.#context = context;
    this.dtype = variant === "f64" ? "f64" : "f32";
    this.round = variant === "bf16" ? roundToBf16 : (value) => value;
  }

  #elements(place: Place): Elements {
    return elementsAt(this.#context.memory, this.dtype, place.offset);
  }

  /** As products read it. */
  read(place: Place, row: number, columns: number): Row {
    return this.readExactly(place, row, columns).map(this.round);
  }

  readExactly(place: Place, row: number, columns: number): Row {
    const elements = this.#elements(place);
    return Float64Array.from({ length: columns }, (_, column) =>
      elements.get(row * place.rowStride + column),
    );
  }

  write(place: Place, row: number, values: Row): void {
    const elements = this.#elements(place);
    values.forEach((value, column) => {
      elements.set(row * place.rowStride + column, value);
    });
  }

  readAll(place: Place, rows: number, columns: number): Row[] {
    return Array.from({ length: rows }, (_, row) => this.read(place, row, columns));
  }

  writeAll(place: Place, rows: readonly Row[]): void {
    rows.forEach((values, row) => {
      this.write(place, row, values);
    });
  }
}

function dot(a: Row, b: Row): number {
  let sum = 0;
  for (let index = 0; index < a.length; index++) sum += a[index]! * b[index]!;
  return sum;
}

function addScaled(out: Row, values: Row, weight: number): void {
  for (let index = 0; index < out.length; index++) out[index]! += values[index]! * weight;
}

/**
 * exp(scale · scores − their maximum) of query `i` over keys 0..i, as products read it; its sum.
 */
function weightsOf(rows: Rows, task: HeadTask, i: number): { weights: Row; total: number } {
  const qNope = rows.read(task.qNope, i, task.nope);
  const qRope = rows.read(task.qRope, i, task.rope);
  const scores = Float64Array.from({ length: i + 1 }, (_, j) => {
    const nope = dot(qNope, rows.read(task.kNope, j, task.nope));
    return (nope + dot(qRope, rows.read(task.keyRope, j, task.rope))) * task.scale;
  });
  const top = Math.max(...scores);
  const exponentials = scores.map((score) => Math.exp(score - top));
  const total = exponentials.reduce((sum, value) => sum + value, 0);
  return { weights: exponentials.map(rows.round), total };
}

export function createReferenceAttention(variant: string, context: ThreadContext): KernelBody {
  const rows = new Rows(context, variant);
  return (slots, firstTask, endTask) => {
    for (let number = firstTask; number < endTask; number++) {
      const task = headTask(slots, number, DTYPE_BYTES[rows.dtype]);
      for (let i = 0; i < task.seqLength; i++) {
        const sum = new Float64Array(task.value);
        const { weights, total } = weightsOf(rows, task, i);
        weights.forEach((weight, j) => {
          addScaled(sum, rows.read(task.values, j, task.value), weight);
        });
        const out = sum.map((value) => value / total);
        rows.write(task.out, i, out);
      }
    }
  };
}

export function createReferenceAttentionBackward(
  variant: string,
  context: ThreadContext,
): KernelBody {
  const rows = new Rows(context, variant);
  return (slots, firstTask, endTask) => {
    for (let number = firstTask; number < endTask; number++) {
      backwardTask(rows, headTask(slots, number, DTYPE_BYTES[rows.dtype]));
    }
  };
}

function backwardTask(rows: Rows, task: HeadTask): void {
  const { seqLength, nope, rope, value, scale } = task;
  const zeros = (columns: number): Row[] =>
    Array.from({ length: seqLength }, () => new Float64Array(columns));
  const kNope = rows.readAll(task.kNope, seqLength, nope);
  const keyRope = rows.readAll(task.keyRope, seqLength, rope);
  const values = rows.readAll(task.values, seqLength, value);
  const dKNope = zeros(nope);
  const dKeyRope = zeros(rope);
  const dValues = zeros(value);
  for (let i = 0; i < seqLength; i++) {
    const qNope = rows.read(task.qNope, i, nope);
    const qRope = rows.read(task.qRope, i, rope);
    const { weights, total } = weightsOf(rows, task, i);
    const dOut = rows.readExactly(task.dOut, i, value).map((each) => rows.round(each / total));
    const dWeights = weights.map((_, j) => dot(dOut, values[j]!));
    const mean = dot(weights, dWeights) / total;
    const dQNope = new Float64Array(nope);
    const dQRope = new Float64Array(rope);
    weights.forEach((weight, j) => {
      const dScore = rows.round(weight * (dWeights[j]! - mean) * scale);
      addScaled(dQNope, kNope[j]!, dScore);
      addScaled(dQRope, keyRope[j]!, dScore);
      addScaled(dKNope[j]!, qNope, dScore);
      addScaled(dKeyRope[j]!, qRope, dScore);
      addScaled(dValues[j]!, dOut, weight);
    });
    rows.write(task.dQNope, i, dQNope);
    rows.write(task.dQRope, i, dQRope);
  }
  rows.writeAll(task.dKNope, dKNope);
  rows.writeAll(task.dKeyRope, dKeyRope);
  rows.writeAll(task.dValues, dValues);
}
