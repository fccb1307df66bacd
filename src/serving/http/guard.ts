/**
 * @file Who may speak to this server from a browser: the Host and Origin of a request.
 *
 * A page on the internet can make a browser send requests to a loopback address (also by a name
 * that it lets point there). So on a loopback address the Host must be a loopback name or one that
 * the operator listed; and a request that carries an Origin is refused unless it is this server's
 * own or a listed one. CORS headers are sent to listed origins only. Neither header ever decides
 * whether a key is needed.
 */
import type { IncomingHttpHeaders, IncomingMessage } from "node:http";
import { OperationalError } from "../../base/errors.ts";

export interface GuardOptions {
  /** The address listened on. */
  readonly host: string;
  /** Host names beside the loopback ones, without ports. */
  readonly allowedHosts: readonly string[];
  /** Origins such as `https://app.example`. */
  readonly allowedOrigins: readonly string[];
}

const LOOPBACK_NAMES = ["localhost", "127.0.0.1", "[::1]"];
const HOST = /^(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(:\d{1,5})?$/;

/** Whether only this machine can reach an address. */
export function isLoopback(host: string): boolean {
  return host === "localhost" || host === "::1" || /^127(\.\d{1,3}){3}$/.test(host);
}

/** Whoever stands between may have gone by the other of two, so there must not be two. */
const SINGLE_HEADERS = ["host", "origin", "authorization", "x-api-key", "content-type"];

/** Refuse a request that says twice who it is for, from or what. */
export function checkSingle(distinct: IncomingMessage["headersDistinct"]): void {
  const repeated = SINGLE_HEADERS.find((name) => (distinct[name]?.length ?? 0) > 1);
  if (repeated === undefined) return;
  throw new OperationalError("serving.invalid", `the header ${repeated} is there twice`);
}

/** Refuse a request whose Host or Origin may not speak to this server. */
export function checkSource(headers: IncomingHttpHeaders, options: GuardOptions): void {
  const host = headers.host?.toLowerCase() ?? "";
  const name = HOST.exec(host)?.[1];
  if (name === undefined) forbid("the Host header is not a host name");
  const isKnown =
    name === options.host || LOOPBACK_NAMES.includes(name) || options.allowedHosts.includes(name);
  if (isLoopback(options.host) && !isKnown) {
    forbid(`the Host is not this server's; start it with --allow-host ${name} to admit it`);
  }
  const { origin } = headers;
  if (origin === undefined || options.allowedOrigins.includes(origin)) return;
  if (origin !== `http://${host}` && origin !== `https://${host}`) {
    forbid("this Origin may not use the server; the operator can admit it with --allow-origin");
  }
}

/** What the operator admits, as requests spell it; refuses what no request could match. */
export function checkAdmitted({
  allowedHosts,
  allowedOrigins,
}: Pick<GuardOptions, "allowedHosts" | "allowedOrigins">): Pick<
  GuardOptions,
  "allowedHosts" | "allowedOrigins"
> {
  return { allowedHosts: allowedHosts.map(hostName), allowedOrigins: allowedOrigins.map(originOf) };
}

function hostName(given: string): string {
  const [, name, port] = HOST.exec(given.toLowerCase()) ?? [];
  if (name !== undefined && port === undefined) return name;
  throw new OperationalError(
    "usage.host",
    `--allow-host ${given} must be a host name without scheme, port and path: app.example`,
  );
}

function originOf(given: string): string {
  const origin = URL.canParse(given) ? new URL(given).origin : "null";
  if (origin !== "null" && [origin, `${origin}/`].includes(given.toLowerCase())) return origin;
  throw new OperationalError(
    "usage.origin",
    `--allow-origin ${given} must be a scheme and a host without a path: https://app.example`,
  );
}

/** The CORS headers for a request of a listed origin; none for any other. */
export function corsHeaders(
  headers: IncomingHttpHeaders,
  { allowedOrigins }: GuardOptions,
): Record<string, string> {
  const { origin } = headers;
  if (origin === undefined || !allowedOrigins.includes(origin)) return {};
  return {
    "access-control-allow-origin": origin,
    "access-control-expose-headers": "x-request-id, retry-after",
    vary: "origin",
  };
}

/** The answer to a browser's question whether it may send a request. */
export function preflightHeaders(headers: IncomingHttpHeaders): Record<string, string> {
  const asked = headers["access-control-request-headers"] ?? "";
  const allowed = asked
    .toLowerCase()
    .split(",")
    .map((name) => name.trim())
    .filter((name) => ALLOWED_HEADERS.test(name));
  return {
    "access-control-allow-methods": "GET, HEAD, POST",
    "access-control-allow-headers": allowed.join(", "),
    "access-control-max-age": "600",
  };
}

const ALLOWED_HEADERS =
  /^(authorization|content-type|x-api-key|anthropic-[a-z-]+|x-stainless-[a-z-]+)$/;

function forbid(problem: string): never {
  throw new OperationalError("serving.forbidden", problem);
}
