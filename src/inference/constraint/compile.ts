/**
 * @file A constraint as it is asked for, compiled to a network: a pure function whose argument and
 * result can be sent between threads. Untrusted schemas and patterns belong in a thread that can be
 * ended; the limits in here keep each of them to a fraction of a second.
 */
import type { ConstraintSpec } from "../engine/api.ts";
import { compilePattern } from "./expression-network.ts";
import { compileJsonSchema } from "./json-schema.ts";
import type { Network } from "./network.ts";

export function compileConstraint(spec: ConstraintSpec): Network {
  if (spec.kind === "regex") return compilePattern(spec.pattern);
  return compileJsonSchema(spec.kind === "json" ? { type: "object" } : spec.schema);
}
