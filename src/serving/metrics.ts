/**
 * @file What the server counts of HTTP, and the text that Prometheus reads; engines count the rest.
 *
 *     hadal_NAME{model_name="…",label="…"} VALUE
 *
 * Names have vLLM's suffixes, so that dashboards port by replacing the prefix. Labels come from
 * closed sets: names of models, routes and reasons; nothing that a client chose. Text format:
 * Prometheus' exposition format 0.0.4.
 */
import type { EngineMetric } from "../inference/engine/api.ts";

export const METRICS_KIND = "text/plain; version=0.0.4; charset=utf-8";

export class Metrics {
  readonly #requests = new Map<string, number>();
  readonly #bodyBytes: () => number;
  #disconnects = 0;
  #connections = 0;

  /** `bodyBytes` is what the bodies of open requests take now. */
  constructor(bodyBytes: () => number) {
    this.#bodyBytes = bodyBytes;
  }

  /** An HTTP request has been answered. */
  answered(route: string, status: number): void {
    const key = `${route} ${status}`;
    this.#requests.set(key, (this.#requests.get(key) ?? 0) + 1);
  }

  disconnected(): void {
    this.#disconnects++;
  }

  /** Sockets came, or went. */
  connected(change: 1 | -1): void {
    this.#connections += change;
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
    return [
      ...requests,
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
        value: this.#connections,
      },
      {
        kind: "gauge",
        name: "http_request_body_bytes",
        help: "Bytes of the bodies of requests that are not answered yet.",
        labels: {},
        value: this.#bodyBytes(),
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
