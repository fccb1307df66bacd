/** @file The thread that compiles one constraint. */
import { parentPort, workerData } from "node:worker_threads";
import { defined, OperationalError } from "../../../base/errors.ts";
import { compileConstraint } from "../../constraint/compile.ts";
import type { ConstraintSpec } from "../api.ts";
import type { CompileAnswer } from "./constraint-compiler.ts";

function answer(spec: ConstraintSpec): CompileAnswer {
  try {
    return { network: compileConstraint(spec) };
  } catch (failure) {
    if (!(failure instanceof OperationalError)) throw failure;
    return { code: failure.code, message: failure.message };
  }
}

defined(parentPort, "the thread's parent").postMessage(answer(workerData as ConstraintSpec));
