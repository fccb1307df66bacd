/**
 * @file What a row kernel's operands cost to move: plain loops over the same rows, that read what
 * the kernel reads and write where it writes.
 *
 * No value of an operand that is read changes. One loop leaves memory to the processor, the other
 * asks for the next row of every operand; which is faster depends on processor and sizes, and the
 * kernel is judged by the faster one. Stores are ordinary ones: what they write is in the caches
 * afterwards, as kernels leave it for the next.
 */
import { defined } from "../../base/errors.ts";
import { ceilDiv } from "../../base/integers.ts";
import type { RowProgram, Value } from "../../codegen/vector/program.ts";
import { type OperandDType, type Recorder, rowProgram } from "../../codegen/vector/recorder.ts";
import { CpuMemory } from "../../device/cpu/memory.ts";
import { createNativeRuntime } from "../../device/cpu/native.ts";
import type { Device } from "../../device/device.ts";
import type { ThreadContext } from "../../device/program.ts";
import { matrix } from "../../kernels/launch-rows.ts";
import { rowImplementations } from "../../kernels/row-kernel.ts";
import { row } from "../../kernels/row-operands.ts";
import { DTYPE_BYTES } from "../../tensor/dtype.ts";
import type { Tensor } from "../../tensor/tensor.ts";

/**
 * Operands of as many rows and columns, five at most. What is changed in place is in both lists.
 */
export interface Traffic {
  readonly reads: readonly Tensor[];
  readonly writes: readonly Tensor[];
}

const ROWS_PER_TASK = 8;
const BLOCK_BYTES = 4096;

/** Each operand counted once as it is read and once as it is written. */
export function trafficBytes({ reads, writes }: Traffic): number {
  return [...reads, ...writes].reduce(
    (sum, { rows, columns, dtype }) => sum + rows * columns * DTYPE_BYTES[dtype],
    0,
  );
}

/** The loops, each run by a call. */
export function trafficLoops({ memory }: Device, traffic: Traffic): readonly (() => void)[] {
  const { runtime } = createNativeRuntime();
  const span = () => ({ byteOffset: memory.reserve(BLOCK_BYTES), byteLength: BLOCK_BYTES });
  const context: ThreadContext = {
    ...{ threadIndex: 0, native: runtime, scratch: span(), argumentBlock: span() },
    // A device without native code has not asked where its memory lies.
    memory: CpuMemory.attach(memory.wasm, runtime?.addressOf(memory.u8) ?? 0),
  };
  const { rows, columns } = defined(traffic.reads[0], "an operand that is read");
  const operands = operandsOf(traffic).flatMap((tensor) => [...matrix(tensor)]);
  const slots = Float64Array.from([rows, columns, ROWS_PER_TASK, ...operands]);
  return [false, true].map((isAhead) => {
    const implementation = rowImplementations(() => loop(traffic, isAhead)).find(
      ({ refusal }) => refusal("", context) === null,
    );
    const body = defined(implementation, "row programs on this machine").create("", context);
    return () => body(slots, 0, ceilDiv(rows, ROWS_PER_TASK));
  });
}

function operandsOf({ reads, writes }: Traffic): readonly Tensor[] {
  return [...reads, ...writes.filter((tensor) => !reads.includes(tensor))];
}

const BITS: Record<number, OperandDType> = { 1: "u8", 2: "bf16", 4: "f32" };

function loop({ reads, writes }: Traffic, isAhead: boolean): RowProgram {
  const tensors = operandsOf({ reads, writes });
  const operands = Object.fromEntries(
    tensors.map(({ dtype }, index) => [`operand${index}`, row(BITS[DTYPE_BYTES[dtype]])]),
  );
  return rowProgram({
    name: "traffic",
    operands,
    scalars: [],
    body(v) {
      const move = (): void => {
        const loaded = reads.map((_, index) => v.loadBits(index));
        for (const tensor of writes) {
          const own = Math.max(0, reads.indexOf(tensor));
          v.storeBits(tensors.indexOf(tensor), keeping(v, loaded, own));
        }
      };
      v.columns(move, isAhead ? { ahead: tensors.map((_, at) => at) } : {});
    },
  });
}

/** The bits of one value, by way of all. */
function keeping(v: Recorder, values: readonly Value[], own: number): Value {
  const others = values.filter((_, index) => index !== own);
  if (others.length === 0) return values[own]!;
  const any = others.reduce((left, right) => v.or(left, right));
  return v.and(values[own]!, v.or(any, v.integer(-1)));
}
