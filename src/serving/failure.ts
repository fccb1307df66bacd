/**
 * @file What a client may be told when its request fails: a status, a kind, a message, the field.
 *
 * Everything that refuses throws an OperationalError; its code decides the status, here and nowhere
 * else. Details of the machine (paths, stacks) never reach a client: an error that is not
 * operational, or is of a kind not listed, is "internal error" to it and goes to the log.
 */
import { OperationalError } from "../base/errors.ts";

export interface Failure {
  readonly status: number;
  /** The error's type in OpenAI's words. */
  readonly type: string;
  readonly message: string;
  /** The field of the request, if one is to blame. */
  readonly param: string | null;
  readonly code: string | null;
  /** For `Retry-After`, in milliseconds. */
  readonly retryAfterMs: number | null;
  /** For `Allow`: the methods that the path has. */
  readonly allow: string | null;
}

type Kind = Pick<Failure, "status" | "type" | "code">;

const INVALID: Kind = { status: 400, type: "invalid_request_error", code: null };

/** By code, or by the part before the dot. */
const KINDS: Readonly<Record<string, Kind>> = {
  "serving.invalid": INVALID,
  "serving.unsupported": { ...INVALID, code: "unsupported_parameter" },
  "serving.key": { status: 401, type: "authentication_error", code: "invalid_api_key" },
  "serving.forbidden": { status: 403, type: "permission_error", code: "forbidden" },
  "serving.unknown": { status: 404, type: "not_found_error", code: "not_found" },
  "serving.model": { status: 404, type: "not_found_error", code: "model_not_found" },
  "serving.method": { status: 405, type: "invalid_request_error", code: "method_not_allowed" },
  "serving.timeout": { status: 408, type: "timeout_error", code: "request_timeout" },
  "serving.conflict": { status: 409, type: "invalid_request_error", code: "conflict" },
  "serving.size": { status: 413, type: "invalid_request_error", code: "request_too_large" },
  "serving.media": { status: 415, type: "invalid_request_error", code: "unsupported_media_type" },
  "serving.rate": { status: 429, type: "rate_limit_error", code: "rate_limit_exceeded" },
  "serving.draining": { status: 503, type: "overloaded_error", code: "draining" },
  "serving.memory": { status: 507, type: "insufficient_memory_error", code: "memory" },
  "serving.loading": { status: 503, type: "overloaded_error", code: "model_loading" },
  "serving.busy": { status: 503, type: "overloaded_error", code: "server_overloaded" },
  "engine.busy": { status: 503, type: "overloaded_error", code: "engine_overloaded" },
  "engine.deadline": { status: 504, type: "timeout_error", code: "deadline_exceeded" },
  "engine.closed": { status: 503, type: "overloaded_error", code: "engine_closed" },
  "engine.context": { ...INVALID, code: "context_length_exceeded" },
  "inference.context": { ...INVALID, code: "context_length_exceeded" },
  inference: INVALID,
  constraint: INVALID,
  tokenizer: INVALID,
};

/** `inference.logits` is the model's failure, not the request's. */
const INTERNAL_CODES = ["inference.logits"];

/** What to tell about an error; undefined: nothing but that there was one. */
export function failureOf(error: unknown): Failure | undefined {
  if (!(error instanceof OperationalError)) return undefined;
  if (INTERNAL_CODES.includes(error.code)) return undefined;
  const kind = KINDS[error.code] ?? KINDS[error.code.split(".")[0]!];
  if (kind === undefined) return undefined;
  const { param, retryAfterMs, allow } = error.details;
  return {
    ...kind,
    message: error.message,
    param: typeof param === "string" ? param : null,
    retryAfterMs:
      typeof retryAfterMs === "number" ? retryAfterMs : kind.status === 503 ? 1000 : null,
    allow: typeof allow === "string" ? allow : null,
  };
}

export const INTERNAL_FAILURE: Failure = {
  status: 500,
  type: "server_error",
  message: "internal error; the server's log has it under this request's id",
  param: null,
  code: "internal_error",
  retryAfterMs: null,
  allow: null,
};

/** What a protocol calls the fields that an engine may refuse. */
export interface FieldNames {
  readonly prompt: string;
  /** Left out where a protocol has none. */
  readonly constraint?: string;
  readonly stops: string;
  readonly maxTokens: string;
}

const BLAMED: Readonly<Record<string, keyof FieldNames>> = {
  "engine.context": "prompt",
  "inference.prompt": "prompt",
  "inference.token": "prompt",
  "inference.stop": "stops",
  "inference.length": "maxTokens",
  constraint: "constraint",
};

/** The error with the field that is to blame, where an engine refused something of a request. */
export function withField(error: unknown, names: FieldNames): unknown {
  if (!(error instanceof OperationalError) || "param" in error.details) return error;
  const { code, message, details } = error;
  const field = BLAMED[code] ?? BLAMED[code.split(".")[0]!];
  const param = field === undefined ? undefined : names[field];
  if (param === undefined) return error;
  return new OperationalError(code, message, { ...details, param }, error);
}

/** Refuse a request because of one of its fields. */
export function refuseField(param: string, problem: string): never {
  throw new OperationalError("serving.invalid", `${param} ${problem}`, { param });
}

/** Refuse a field that exists elsewhere, rather than ignore it. */
export function refuseUnsupported(param: string, remedy: string): never {
  throw new OperationalError("serving.unsupported", `${param} is not supported here; ${remedy}`, {
    param,
  });
}
