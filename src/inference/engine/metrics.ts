/**
 * @file What an engine counts, in the names that dashboards of vLLM know.
 *
 * Buckets and labels are fixed: nothing that a client chose becomes a name.
 */
import type { EngineMetric, FinishReason } from "./api.ts";
import { DRAFTS_MAX } from "./draft-policy.ts";

const SECONDS = [0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120];
const LIFETIMES = [0.1, 1, 10, 60, 300, 900, 3600, 14_400, 86_400];

class Histogram {
  readonly #upTo: readonly number[];
  readonly #counts: number[];
  #count = 0;
  #sum = 0;

  constructor(upTo: readonly number[]) {
    this.#upTo = upTo;
    this.#counts = upTo.map(() => 0);
  }

  observe(seconds: number): void {
    this.#count++;
    this.#sum += seconds;
    this.#upTo.forEach((upTo, index) => {
      if (seconds <= upTo) this.#counts[index]! += 1;
    });
  }

  describe(name: string, help: string): EngineMetric {
    const buckets = this.#upTo.map((upTo, index) => ({ upTo, count: this.#counts[index]! }));
    buckets.push({ upTo: Number.POSITIVE_INFINITY, count: this.#count });
    return { name, help, labels: {}, kind: "histogram", buckets, sum: this.#sum };
  }
}

const TIMES = {
  time_to_first_token_seconds: "From asking to the first token.",
  inter_token_latency_seconds: "From one token to the next.",
  e2e_request_latency_seconds: "From asking to the end.",
  request_queue_time_seconds: "From asking to being admitted.",
  request_prefill_time_seconds: "From being admitted to the first token.",
  request_decode_time_seconds: "From the first token to the end.",
  kv_block_lifetime_seconds: "How long a latent block was in use, kept prefixes included.",
} as const;
export type TimeName = keyof typeof TIMES;

const COUNTERS = {
  prompt_tokens_total: "Tokens of prompts that were read or found in the prefix cache.",
  generation_tokens_total: "Tokens generated.",
  num_preemptions_total: "Sequences that gave their blocks back and waited again.",
  prefix_cache_queries_total: "Tokens looked for in the prefix cache.",
  prefix_cache_hits_total: "Tokens found in the prefix cache, those fetched from a disk included.",
  prefix_cache_near_misses_total: "Prompts that left a cached prefix at some token.",
  prefix_cache_disk_queries_total: "Tokens that memory lacked and the disk was asked for.",
  prefix_cache_disk_hits_total: "Tokens fetched from the disk.",
  spec_decode_num_drafts_total: "Steps that verified a draft.",
  spec_decode_num_draft_tokens_total: "Tokens drafted.",
  spec_decode_num_accepted_tokens_total: "Drafted tokens that stood.",
} as const;
export type CounterName = keyof typeof COUNTERS;

const REASONS: readonly FinishReason[] = ["end", "stop", "length", "context", "aborted"];

export interface Gauges {
  readonly num_requests_running: number;
  readonly num_requests_waiting: number;
  /** 0 to 1; blocks that only the prefix cache refers to count as used. */
  readonly kv_cache_usage_perc: number;
}

export class EngineCounts {
  readonly #times = new Map<string, Histogram>(
    Object.keys(TIMES).map((name) => {
      const isLifetime = name === "kv_block_lifetime_seconds";
      return [name, new Histogram(isLifetime ? LIFETIMES : SECONDS)];
    }),
  );
  readonly #counters = new Map<string, number>(Object.keys(COUNTERS).map((name) => [name, 0]));
  readonly #acceptedAt: number[] = new Array(DRAFTS_MAX).fill(0);
  readonly #finished = new Map<FinishReason | "error", number>();

  add(name: CounterName, amount: number): void {
    this.#counters.set(name, this.#counters.get(name)! + amount);
  }

  observe(name: TimeName, milliseconds: number): void {
    this.#times.get(name)!.observe(milliseconds / 1000);
  }

  /** So many of a sequence's drafts stood, the first ones. */
  accept(numStood: number): void {
    for (let position = 0; position < numStood; position++) this.#acceptedAt[position]! += 1;
  }

  finish(reason: FinishReason | "error"): void {
    this.#finished.set(reason, (this.#finished.get(reason) ?? 0) + 1);
  }

  describe(gauges: Gauges): readonly EngineMetric[] {
    const gauge = (name: keyof Gauges, help: string): EngineMetric => ({
      ...{ name, help, labels: {}, kind: "gauge" as const },
      value: gauges[name],
    });
    return [
      gauge("num_requests_running", "Requests that are being read or generated."),
      gauge("num_requests_waiting", "Requests in the queue."),
      gauge("kv_cache_usage_perc", "Share of the latent blocks in use, 0 to 1."),
      ...Object.entries(COUNTERS).map(([name, help]): EngineMetric => {
        return { name, help, labels: {}, kind: "counter", value: this.#counters.get(name)! };
      }),
      ...this.#acceptedAt.map((value, position): EngineMetric => {
        const help = "Drafted tokens that stood, by their place in the draft.";
        const labels = { position: String(position) };
        const name = "spec_decode_num_accepted_tokens_per_pos_total";
        return { name, help, labels, kind: "counter", value };
      }),
      ...[...REASONS, "error" as const].map((reason): EngineMetric => {
        const help = "Requests that ended, by reason.";
        const labels = { finished_reason: reason };
        const value = this.#finished.get(reason) ?? 0;
        return { name: "request_success_total", help, labels, kind: "counter", value };
      }),
      ...Object.entries(TIMES).map(([name, help]) => this.#times.get(name)!.describe(name, help)),
    ];
  }
}

/** How uneven the experts of each layer are. */
export function loadMetrics(
  layerIndexes: readonly number[],
  maxOverMean: readonly number[],
): EngineMetric[] {
  return layerIndexes.map((layerIndex, index) => ({
    kind: "gauge",
    name: "expert_load_max_over_mean",
    help: "The most chosen expert's tokens over the mean, of late; 1 is even.",
    labels: { layer: String(layerIndex) },
    value: maxOverMean[index]!,
  }));
}
