/**
 * @file The frame of a native kernel, and its arguments.
 *
 *     void kernel(const double *slots, int64_t firstTask, int64_t endTask, uint8_t *memoryBase)
 *
 * System V calling convention: arguments in rdi, rsi, rdx, rcx; rbx, rbp and r12..r15 are saved for
 * the caller; every vector, mask and other general register is free. The frame may hold local
 * variables of 64 bits, for loops that run out of registers. Upper vector halves are zeroed on
 * return, so that no later SSE code runs slowly.
 */
import { assert } from "../../base/errors.ts";
import { isIntegerIn, roundUp } from "../../base/integers.ts";
import { X64 } from "./assembler.ts";
import { type Gp, type Memory, mem, r } from "./operands.ts";

/** Where the four arguments arrive. */
export const KERNEL_ARGUMENTS: Readonly<
  Record<"slots" | "firstTask" | "endTask" | "memoryBase", Gp>
> = {
  slots: r.rdi,
  firstTask: r.rsi,
  endTask: r.rdx,
  memoryBase: r.rcx,
};

const SAVED: readonly Gp[] = [r.rbx, r.rbp, r.r12, r.r13, r.r14, r.r15];

/**
 * Code of a kernel. `body` emits it and falls through at its end; `local(i)` is its i-th local
 * variable, `subroutines` emits what `body` calls, after the return.
 */
export function emitKernel(options: {
  readonly numLocals?: number;
  readonly body: (a: X64, local: (index: number) => Memory) => void;
  readonly subroutines?: (a: X64) => void;
}): Uint8Array {
  const { numLocals = 0, body, subroutines } = options;
  const a = new X64();
  const frameBytes = roundUp(8 * numLocals, 16);
  for (const register of SAVED) a.push(register);
  if (frameBytes > 0) a.sub(r.rsp, frameBytes);
  body(a, (index) => {
    assert(isIntegerIn(index, 0, numLocals - 1), `local ${index} of ${numLocals}`);
    return mem(r.rsp, 8 * index);
  });
  if (frameBytes > 0) a.add(r.rsp, frameBytes);
  a.vzeroupper();
  for (const register of SAVED.toReversed()) a.pop(register);
  a.ret();
  subroutines?.(a);
  return a.code();
}

/** destination = the whole number in slot `index` of the argument block (its base in `slots`). */
export function loadSlot(a: X64, destination: Gp, index: number, slots: Gp = r.rdi): void {
  a.v("vcvttsd2si", [destination, mem(slots, 8 * index)]);
}
