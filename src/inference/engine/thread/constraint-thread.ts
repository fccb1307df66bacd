/** @file The thread that compiles one constraint. */
import { parentPort, workerData } from "node:worker_threads";
import { defined } from "../../../base/errors.ts";
import { failureOf } from "../../../base/failure.ts";
import { compileConstraint } from "../../constraint/compile.ts";
import type { ConstraintSpec } from "../api.ts";
import type { CompileAnswer } from "./constraint-compiler.ts";

function answer(spec: ConstraintSpec): CompileAnswer {
  try {
    return { network: compileConstraint(spec) };
  } catch (error) {
    return { failure: failureOf(error) };
  }
}

defined(parentPort, "the thread's parent").postMessage(answer(workerData as ConstraintSpec));
