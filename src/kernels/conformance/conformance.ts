/**
 * @file One conformance suite over every implementation of every kernel.
 *
 * Each case runs twice from one seed: on the device under test and on a device with reference
 * kernels only. Outputs must agree within the tolerance table, and nothing outside the operands may
 * change. A new implementation inherits every case; `hadal doctor` runs them on the user's machine.
 */
import { defined } from "../../base/errors.ts";
import type { Device } from "../../device/device.ts";
import type { Span } from "../../device/program.ts";
import { mismatch, type Tolerance } from "../../numerics/tolerance.ts";
import { Arena } from "../../tensor/arena.ts";
import type { Tensor } from "../../tensor/tensor.ts";
import { ATTENTION_CASES } from "./attention-cases.ts";
import { CODED_CASES } from "./coded-cases.ts";
import { LATENT_ATTENTION_CASES } from "./latent-attention-cases.ts";
import { MATMUL_CASES } from "./matmul-cases.ts";
import { ROW_CASES } from "./row-cases.ts";
import { SCALED_CASES } from "./scaled-cases.ts";
import { readTensor, TensorMaker } from "./tensor-maker.ts";
import { TILE_STEP_CASES } from "./tile-step-cases.ts";

/** More than any operand of a case. */
const LAST_BLOCK_BYTES = 2 ** 22;

/** A prepared case on one device: run it, then look at the outputs. */
export interface PreparedCase {
  run(device: Device): void;
  readonly outputs: Readonly<Record<string, Tensor>>;
}

export interface ConformanceCase {
  /** Key of the kernel, "name/variant". */
  readonly kernel: string;
  /** What is particular: shape, values. */
  readonly title: string;
  readonly tolerance: Tolerance;
  prepare(make: TensorMaker): PreparedCase;
}

export const CONFORMANCE_CASES: readonly ConformanceCase[] = [
  ...MATMUL_CASES,
  ...SCALED_CASES,
  ...TILE_STEP_CASES,
  ...CODED_CASES,
  ...ATTENTION_CASES,
  ...LATENT_ATTENTION_CASES,
  ...ROW_CASES,
];

/** A case that failed, for people. */
export interface ConformanceFailure {
  readonly kernel: string;
  readonly title: string;
  readonly seed: number;
  readonly problem: string;
}

/**
 * A device under test beside a device with reference kernels, each with memory for one case at a
 * time.
 */
export class ConformanceBench {
  readonly #device: Device;
  readonly #oracle: Device;
  readonly #arenas: readonly [Arena, Arena];
  #block: Span | null = null;

  constructor(device: Device, oracle: Device) {
    this.#device = device;
    this.#oracle = oracle;
    this.#arenas = [
      new Arena(device.memory, "conformance"),
      new Arena(oracle.memory, "conformance"),
    ];
  }

  /**
   * Run one case; null if it passes. The operand of number `endOperand` (if the case has as many)
   * stands at the end of the memory, where a kernel that goes beyond it ends the process: for
   * tests.
   */
  check(testCase: ConformanceCase, seed: number, endOperand?: number): ConformanceFailure | null {
    const { kernel, title, tolerance } = testCase;
    const fail = (problem: string): ConformanceFailure => ({ kernel, title, seed, problem });
    const [actualArena, expectedArena] = this.#arenas;
    using _actualMark = actualArena.mark();
    using _expectedMark = expectedArena.mark();
    const label = `${kernel} ${title}`;
    const endPlace =
      endOperand === undefined ? undefined : { operand: endOperand, block: this.#lastBlock() };
    const make = new TensorMaker(this.#device, actualArena, seed, label, endPlace);
    const actual = testCase.prepare(make);
    const expected = testCase.prepare(new TensorMaker(this.#oracle, expectedArena, seed, label));
    actual.run(this.#device);
    expected.run(this.#oracle);
    const disturbed = make.disturbedGuard();
    if (disturbed !== null) return fail(disturbed);
    for (const [name, tensor] of Object.entries(expected.outputs)) {
      const other = defined(actual.outputs[name], `output ${name}`);
      const problem = mismatch(readTensor(other), readTensor(tensor), tolerance);
      if (problem !== undefined) return fail(`${name}${problem}`);
    }
    return null;
  }

  /** A block that ends where the device's memory ends; a new one whenever the memory has grown. */
  #lastBlock(): Span {
    const { memory } = this.#device;
    const block = this.#block;
    if (block !== null && block.byteOffset + block.byteLength === memory.byteLength) return block;
    // Less than a block is left: this makes the memory grow.
    if (memory.unreservedBytes < LAST_BLOCK_BYTES) memory.reserve(LAST_BLOCK_BYTES);
    memory.reserve(memory.unreservedBytes);
    const byteOffset = memory.byteLength - LAST_BLOCK_BYTES;
    this.#block = { byteOffset, byteLength: LAST_BLOCK_BYTES };
    return this.#block;
  }
}
