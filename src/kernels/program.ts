/**
 * @file The program of the CPU device: for every kernel and variant, the best implementation that
 * runs here.
 *
 * Imported by the launching thread and by every worker thread, which all arrive at the same list of
 * keys.
 */
import { assert, defined } from "../base/errors.ts";
import type {
  CreateProgram,
  KernelBody,
  KernelChoice,
  KernelReport,
  Program,
  ThreadContext,
} from "../device/program.ts";
import { DECLARATIONS } from "./declarations.ts";
import type { KernelDeclaration, KernelImplementation } from "./kernel.ts";

interface Chosen {
  readonly key: string;
  readonly variant: string;
  readonly implementation: KernelImplementation;
  readonly reasons: readonly string[];
}

export const createProgram: CreateProgram = (context, choice): Program => {
  const chosen = DECLARATIONS.flatMap((declaration) =>
    declaration.variants.map((variant) => choose(declaration, variant, context, choice)),
  );
  const bodies: (KernelBody | undefined)[] = chosen.map(() => undefined);
  return {
    keys: chosen.map((entry) => entry.key),
    body(keyIndex: number): KernelBody {
      const entry = defined(chosen[keyIndex], `kernel ${keyIndex}`);
      bodies[keyIndex] ??= entry.implementation.create(entry.variant, context);
      return bodies[keyIndex];
    },
    report(keyIndex: number): KernelReport {
      const entry = defined(chosen[keyIndex], `kernel ${keyIndex}`);
      return { key: entry.key, target: entry.implementation.target, reasons: entry.reasons };
    },
  };
};

function choose(
  declaration: KernelDeclaration,
  variant: string,
  context: ThreadContext,
  choice: KernelChoice,
): Chosen {
  const key = `${declaration.name}/${variant}`;
  const reasons: string[] = [];
  for (const implementation of declaration.implementations) {
    const allowed =
      choice === "auto" ||
      implementation.target === choice ||
      implementation.target === "reference";
    const refusal = allowed
      ? implementation.refusal(variant, context)
      : `HADAL_KERNELS=${choice} was asked for`;
    if (refusal === null) return { key, variant, implementation, reasons };
    reasons.push(`${implementation.target}: ${refusal}`);
  }
  assert(false, `kernel ${key} has no reference implementation`);
}
