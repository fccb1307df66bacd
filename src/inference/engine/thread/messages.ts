/** @file What passes between an engine in a thread of its own and the thread that uses it. */
import type { Failure } from "../../../base/failure.ts";
import type {
  EngineDescription,
  EngineEvent,
  EngineMetric,
  EngineRequest,
  PrefixPart,
  PrefixRequest,
} from "../api.ts";

/** `id` is the caller's number of a call. */
export type ToEngine =
  | { readonly kind: "generate"; readonly id: number; readonly request: EngineRequest }
  | {
      readonly kind: "embed";
      readonly id: number;
      readonly tokens: Int32Array;
      readonly tenant: string;
    }
  | { readonly kind: "readPrefix"; readonly id: number; readonly request: PrefixRequest }
  | { readonly kind: "metrics"; readonly id: number }
  | { readonly kind: "abort"; readonly id: number }
  /** Answered between two steps. */
  | { readonly kind: "ping" }
  | { readonly kind: "close" };

export type FromEngine =
  | { readonly kind: "open"; readonly description: EngineDescription }
  | { readonly kind: "notOpened"; readonly failure: Failure }
  | { readonly kind: "event"; readonly id: number; readonly event: EngineEvent }
  /** A sign of life: the answer to a ping, or given in the middle of a step. */
  | { readonly kind: "pong" }
  | { readonly kind: "end"; readonly id: number }
  | { readonly kind: "failed"; readonly id: number; readonly failure: Failure }
  | { readonly kind: "embedding"; readonly id: number; readonly values: Float32Array }
  | { readonly kind: "prefix"; readonly id: number; readonly part: PrefixPart }
  | { readonly kind: "metrics"; readonly id: number; readonly metrics: readonly EngineMetric[] };
