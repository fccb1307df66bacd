/**
 * @file When each value of a row program is needed for the last time.
 *
 * Positions number the body's instructions in the order they run, a loop's own position after its
 * body. A value made before a loop and used in it is needed until the loop ends. Uniforms live for
 * the whole kernel and have no entry.
 */
import { inputsOf, type RowProgram, type Value } from "./program.ts";

export interface Liveness {
  readonly position: ReadonlyMap<Value, number>;
  /** The position of the last use; a value that nobody uses has none. */
  readonly lastUse: ReadonlyMap<Value, number>;
}

export function analyseLiveness(program: RowProgram): Liveness {
  const position = new Map<Value, number>();
  const lastUse = new Map<Value, number>();
  const uniforms = new Set(program.uniforms);
  let next = 0;
  const use = (value: Value, at: number): void => {
    if (uniforms.has(value)) return;
    lastUse.set(value, Math.max(lastUse.get(value) ?? 0, at));
  };
  for (const value of program.body) {
    const instruction = program.instructions[value]!;
    const start = next;
    if (instruction.op === "columns") {
      const inLoop: [Value, number][] = [];
      for (const inner of instruction.body) {
        for (const input of inputsOf(program.instructions[inner]!)) inLoop.push([input, next]);
        position.set(inner, next++);
      }
      // Reductions read their inputs at the end of each copy of the body.
      for (const reduction of instruction.reductions) {
        inLoop.push([reduction.a, next]);
        if (reduction.kind === "sumOfProducts") inLoop.push([reduction.b, next]);
      }
      next++;
      for (const [input, at] of inLoop) use(input, (position.get(input) ?? -1) < start ? next : at);
      for (const reduction of instruction.reductions) position.set(reduction.value, next);
    }
    for (const input of inputsOf(instruction)) use(input, next);
    position.set(value, next++);
  }
  return { position, lastUse };
}

/** How often each uniform is used, a use inside a column loop counting for many. */
export function uniformWeights(program: RowProgram): Map<Value, number> {
  const IN_LOOP = 16;
  const weights = new Map(program.uniforms.map((value) => [value, 0]));
  const count = (values: readonly Value[], weight: number): void => {
    for (const value of values) {
      const known = weights.get(value);
      if (known !== undefined) weights.set(value, known + weight);
    }
  };
  for (const value of program.body) {
    const instruction = program.instructions[value]!;
    count(inputsOf(instruction), 1);
    if (instruction.op !== "columns") continue;
    for (const inner of instruction.body) count(inputsOf(program.instructions[inner]!), IN_LOOP);
    for (const item of instruction.reductions) {
      count(item.kind === "sumOfProducts" ? [item.a, item.b] : [item.a], IN_LOOP);
    }
  }
  return weights;
}
