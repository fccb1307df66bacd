/**
 * @file What the server counts, and the text that Prometheus reads.
 *
 *     hadal_NAME{model_name="…",label="…"} VALUE
 *
 * Names have vLLM's suffixes, so that dashboards port by replacing the prefix. Labels come from
 * closed sets: names of models, routes and reasons; nothing that a client chose. Text format:
 * Prometheus' exposition format 0.0.4.
 */
import type { EngineMetric } from "../inference/engine/api.ts";
import type { Outcome } from "./generation.ts";

export const METRICS_KIND = "text/plain; version=0.0.4; charset=utf-8";

/** Prometheus' name for a reason, as vLLM has it. */
const REASONS: Readonly<Record<Outcome["reason"], string>> = {
  end: "stop",
  stop: "stop",
  toolCalls: "stop",
  length: "length",
  aborted: "abort",
};

/** Seconds; by feel, from a cached word to a long answer on a slow machine. */
const LATENCY_BUCKETS = [0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300, Infinity];

export class Metrics {
  readonly #requests = new Map<string, number>();
  readonly #reasons = new Map<string, number>();
  readonly #latencies: number[] = LATENCY_BUCKETS.map(() => 0);
  #latencySum = 0;
  #disconnects = 0;
  #openConnections: () => number = () => 0;

  /** An HTTP request has been answered. */
  answered(route: string, status: number): void {
    const key = `${route} ${status}`;
    this.#requests.set(key, (this.#requests.get(key) ?? 0) + 1);
  }

  finished({ reason }: Outcome, seconds: number): void {
    const name = REASONS[reason];
    this.#reasons.set(name, (this.#reasons.get(name) ?? 0) + 1);
    const bucket = LATENCY_BUCKETS.findIndex((upTo) => seconds <= upTo);
    this.#latencies[bucket]! += 1;
    this.#latencySum += seconds;
  }

  disconnected(): void {
    this.#disconnects++;
  }

  watchConnections(count: () => number): void {
    this.#openConnections = count;
  }

  list(): readonly EngineMetric[] {
    const requests = [...this.#requests].map(([key, value]): EngineMetric => {
      const [route = "", status = ""] = key.split(" ");
      const help = "HTTP requests answered.";
      return {
        kind: "counter",
        name: "http_requests_total",
        help,
        labels: { route, status },
        value,
      };
    });
    const reasons = [...this.#reasons].map(([finished_reason, value]): EngineMetric => {
      const help = "Answers that were finished.";
      const labels = { finished_reason };
      return { kind: "counter", name: "request_success_total", help, labels, value };
    });
    let count = 0;
    const buckets = LATENCY_BUCKETS.map((upTo, index) => {
      count += this.#latencies[index]!;
      return { upTo, count };
    });
    return [
      ...requests,
      ...reasons,
      {
        kind: "histogram",
        name: "e2e_request_latency_seconds",
        help: "From the request to the end of its answer.",
        labels: {},
        buckets,
        sum: this.#latencySum,
      },
      {
        kind: "counter",
        name: "client_disconnects_total",
        help: "Clients that left before their answer was complete.",
        labels: {},
        value: this.#disconnects,
      },
      {
        kind: "gauge",
        name: "http_connections_open",
        help: "Sockets open now.",
        labels: {},
        value: this.#openConnections(),
      },
    ];
  }
}

/** Metrics as text; those of one name stand together, as the format wants. */
export function expositionText(metrics: readonly EngineMetric[]): string {
  const byName = new Map<string, EngineMetric[]>();
  for (const metric of metrics) {
    const same = byName.get(metric.name);
    if (same === undefined) byName.set(metric.name, [metric]);
    else same.push(metric);
  }
  return [...byName].flatMap(([name, group]) => familyLines(`hadal_${name}`, group)).join("");
}

function familyLines(name: string, group: readonly EngineMetric[]): string[] {
  const [first] = group;
  return [
    `# HELP ${name} ${first!.help.replaceAll("\\", "\\\\").replaceAll("\n", "\\n")}\n`,
    `# TYPE ${name} ${first!.kind}\n`,
    ...group.flatMap((metric) => sampleLines(name, metric)),
  ];
}

function sampleLines(name: string, metric: EngineMetric): string[] {
  if (metric.kind !== "histogram") return [`${name}${labelText(metric.labels)} ${metric.value}\n`];
  const count = metric.buckets.at(-1)?.count ?? 0;
  return [
    ...metric.buckets.map((bucket) => {
      const labels = labelText({ ...metric.labels, le: limitText(bucket.upTo) });
      return `${name}_bucket${labels} ${bucket.count}\n`;
    }),
    `${name}_sum${labelText(metric.labels)} ${metric.sum}\n`,
    `${name}_count${labelText(metric.labels)} ${count}\n`,
  ];
}

function limitText(limit: number): string {
  return limit === Infinity ? "+Inf" : String(limit);
}

function labelText(labels: Readonly<Record<string, string>>): string {
  const pairs = Object.entries(labels).map(([label, value]) => {
    const escaped = value.replaceAll("\\", "\\\\").replaceAll('"', '\\"').replaceAll("\n", "\\n");
    return `${label}="${escaped}"`;
  });
  return pairs.length === 0 ? "" : `{${pairs.join(",")}}`;
}
