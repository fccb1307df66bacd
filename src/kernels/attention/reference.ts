/**
 * @file Causal attention, plainly: one query at a time, f64 sums. The oracle for every
 * implementation.
 */
import type { KernelBody, ThreadContext } from "../../device/program.ts";
import type { FloatType } from "../../tensor/dtype.ts";
import { DTYPE_BYTES } from "../../tensor/dtype.ts";
import { type Elements, elementsAt } from "../views.ts";
import { type HeadTask, headTask, type Place } from "./heads.ts";

type Row = Float64Array<ArrayBuffer>;

/** Reads and writes rows of places as f64 arrays. */
class Rows {
  readonly #context: ThreadContext;
  readonly #dtype: FloatType;

  constructor(context: ThreadContext, dtype: FloatType) {
    this.#context = context;
    this.#dtype = dtype;
  }

  #elements(place: Place): Elements {
    return elementsAt(this.#context.memory, this.#dtype, place.offset);
  }

  read(place: Place, row: number, columns: number): Row {
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

/** softmax(scale · scores) of query `i` over keys 0..i. */
function probabilities(rows: Rows, task: HeadTask, i: number): Row {
  const qNope = rows.read(task.qNope, i, task.nope);
  const qRope = rows.read(task.qRope, i, task.rope);
  const scores = Float64Array.from({ length: i + 1 }, (_, j) => {
    const nope = dot(qNope, rows.read(task.kNope, j, task.nope));
    return (nope + dot(qRope, rows.read(task.keyRope, j, task.rope))) * task.scale;
  });
  const top = Math.max(...scores);
  const exponentials = scores.map((score) => Math.exp(score - top));
  const total = exponentials.reduce((sum, value) => sum + value, 0);
  return exponentials.map((value) => value / total);
}

export function createReferenceAttention(variant: string, context: ThreadContext): KernelBody {
  const dtype = variant as FloatType;
  const rows = new Rows(context, dtype);
  return (slots, firstTask, endTask) => {
    for (let number = firstTask; number < endTask; number++) {
      const task = headTask(slots, number, DTYPE_BYTES[dtype]);
      for (let i = 0; i < task.seqLength; i++) {
        const out = new Float64Array(task.value);
        probabilities(rows, task, i).forEach((probability, j) => {
          addScaled(out, rows.read(task.values, j, task.value), probability);
        });
        rows.write(task.out, i, out);
      }
    }
  };
}

export function createReferenceAttentionBackward(
  variant: string,
  context: ThreadContext,
): KernelBody {
  const dtype = variant as FloatType;
  const rows = new Rows(context, dtype);
  return (slots, firstTask, endTask) => {
    for (let number = firstTask; number < endTask; number++) {
      backwardTask(rows, headTask(slots, number, DTYPE_BYTES[dtype]));
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
    const dOut = rows.read(task.dOut, i, value);
    const p = probabilities(rows, task, i);
    const dP = p.map((_, j) => dot(dOut, values[j]!));
    const mean = dot(p, dP);
    const dQNope = new Float64Array(nope);
    const dQRope = new Float64Array(rope);
    p.forEach((probability, j) => {
      const dScore = probability * (dP[j]! - mean) * scale;
      addScaled(dQNope, kNope[j]!, dScore);
      addScaled(dQRope, keyRope[j]!, dScore);
      addScaled(dKNope[j]!, qNope, dScore);
      addScaled(dKeyRope[j]!, qRope, dScore);
      addScaled(dValues[j]!, dOut, probability);
    });
    rows.write(task.dQNope, i, dQNope);
    rows.write(task.dQRope, i, dQRope);
  }
  rows.writeAll(task.dKNope, dKNope);
  rows.writeAll(task.dKeyRope, dKeyRope);
  rows.writeAll(task.dValues, dValues);
}
