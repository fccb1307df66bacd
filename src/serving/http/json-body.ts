/**
 * @file A request's body as JSON: bounded in bytes, in depth and in lists before anything parses
 * it.
 *
 * Depth is counted over the text, since parsing a hundred thousand brackets is what the limit is
 * there to prevent. Only `application/json` is taken: a browser sends other kinds across origins
 * without asking first.
 */
import type { IncomingMessage } from "node:http";
import { OperationalError } from "../../base/errors.ts";

export interface BodyLimits {
  readonly bytesMax: number;
  readonly depthMax: number;
}

/** An empty list takes two bytes of text and fifty of memory, so their number is bounded too. */
const CONTAINERS_MAX = 2 ** 20;

/**
 * Reads and parses the body; a body that grows beyond the limit is not read further. `onBytes` is
 * told of every part and may refuse it.
 */
export async function readJsonBody(
  message: IncomingMessage,
  limits: BodyLimits,
  onBytes: (count: number) => void,
): Promise<unknown> {
  checkKind(message);
  const declared = Number(message.headers["content-length"] ?? 0);
  if (declared > limits.bytesMax) refuseLength(limits.bytesMax);
  const parts: Buffer[] = [];
  let bytes = 0;
  // Kept alive when reading stops, so that the client can still be told why.
  const chunks: AsyncIterable<Buffer> = message.iterator({ destroyOnReturn: false });
  for await (const part of chunks) {
    bytes += part.length;
    if (bytes > limits.bytesMax) refuseLength(limits.bytesMax);
    onBytes(part.length);
    parts.push(part);
  }
  return parseJson(Buffer.concat(parts), limits.depthMax);
}

function checkKind({ headers }: IncomingMessage): void {
  const kind = headers["content-type"]?.split(";")[0]?.trim().toLowerCase();
  if (kind !== "application/json") {
    throw new OperationalError("serving.media", "the content-type must be application/json");
  }
  const encoding = headers["content-encoding"];
  if (encoding !== undefined && encoding !== "identity") {
    throw new OperationalError("serving.media", "a compressed body is not taken; send it plain");
  }
}

function refuseLength(bytesMax: number): never {
  throw new OperationalError("serving.size", `the body has more than ${bytesMax} bytes`);
}

function parseJson(bytes: Buffer, depthMax: number): unknown {
  let text: string;
  try {
    text = new TextDecoder("utf-8", { fatal: true }).decode(bytes);
  } catch {
    throw new OperationalError("serving.invalid", "the body is not UTF-8");
  }
  const { depth, containers } = measureNesting(text);
  if (depth > depthMax) {
    throw new OperationalError("serving.invalid", `the body is nested deeper than ${depthMax}`);
  }
  if (containers > CONTAINERS_MAX) {
    const most = `at most ${CONTAINERS_MAX} are taken`;
    throw new OperationalError(
      "serving.invalid",
      `the body has ${containers} lists and objects; ${most}`,
    );
  }
  try {
    return JSON.parse(text);
  } catch {
    throw new OperationalError("serving.invalid", "the body is not JSON");
  }
}

/** The deepest nesting of brackets outside strings, and how many open. */
function measureNesting(text: string): { readonly depth: number; readonly containers: number } {
  let depth = 0;
  let deepest = 0;
  let containers = 0;
  let inString = false;
  for (let index = 0; index < text.length; index++) {
    const code = text.charCodeAt(index);
    if (inString) {
      if (code === 0x5c) index++;
      else if (code === 0x22) inString = false;
    } else if (code === 0x22) inString = true;
    else if (code === 0x5b || code === 0x7b) {
      deepest = Math.max(deepest, ++depth);
      containers++;
    } else if (code === 0x5d || code === 0x7d) depth--;
  }
  return { depth: deepest, containers };
}
