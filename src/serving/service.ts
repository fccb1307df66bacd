/**
 * @file What handlers work with, and the table of routes that leads to them.
 */
import type { Dialect, Exchange } from "./http/exchange.ts";
import type { Metrics } from "./metrics.ts";
import type { ModelRegistry } from "./models/registry.ts";

export interface Service {
  readonly models: ModelRegistry;
  readonly metrics: Metrics;
  /** Seconds since 1970 when the server began. */
  readonly startedAt: number;
  /** Seconds since 1970, for `created`. */
  now(): number;
  /** Whether new work is taken. */
  isDraining(): boolean;
}

export type Handler = (exchange: Exchange, service: Service) => Promise<void>;

export interface Route {
  readonly method: "GET" | "POST";
  /** The whole path; a trailing `*` stands for what is left of it. */
  readonly path: string;
  readonly dialect: Dialect;
  /** Answered without a key; everything else needs one where there are keys. */
  readonly isPublic?: true;
  readonly handle: Handler;
}
