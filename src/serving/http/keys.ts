/**
 * @file API keys: a file with one a line, `NAME KEY` or `KEY`; `#` begins a comment.
 *
 * Only digests are kept, and a key that comes in is compared with all of them in constant time. A
 * key's name (or its number in the file) is what logs and tenants are told; the key itself goes
 * nowhere. Without a file there are no keys, and everyone is one anonymous caller.
 */
import { createHash, timingSafeEqual } from "node:crypto";
import { readFileSync } from "node:fs";
import type { IncomingHttpHeaders } from "node:http";
import { OperationalError, reasonOf } from "../../base/errors.ts";

export interface ApiKey {
  readonly name: string;
  readonly digest: Buffer;
}

const KEY_CHARACTERS = { least: 16, most: 512 };
const NAME = /^[\w.-]{1,64}$/;

/** The keys of a file; refuses one that could be guessed, or that is there twice. */
export function readKeyFile(path: string): readonly ApiKey[] {
  let text: string;
  try {
    text = readFileSync(path, "utf8");
  } catch (cause) {
    throw new OperationalError(
      "serving.keys",
      `${path} cannot be read: ${reasonOf(cause)}`,
      {},
      cause,
    );
  }
  const keys = text
    .split(/\r?\n/)
    .map((line, index) => ({ words: line.replace(/#.*$/, "").trim(), number: index + 1 }))
    .filter(({ words }) => words !== "")
    .map(({ words, number }) => readLine(words, number, path));
  const digests = new Set(keys.map(({ digest }) => digest.toString("hex")));
  const names = new Set(keys.map(({ name }) => name));
  if (keys.length === 0) throw new OperationalError("serving.keys", `${path} holds no key`);
  if (digests.size < keys.length || names.size < keys.length) {
    throw new OperationalError("serving.keys", `${path} has a key or a name twice`);
  }
  return keys;
}

function readLine(words: string, number: number, path: string): ApiKey {
  const [first, second, ...rest] = words.split(/\s+/);
  const key = second ?? first!;
  const name = second === undefined ? `key-${number}` : first!;
  const problem =
    rest.length > 0 || !NAME.test(name)
      ? "must be NAME KEY, the name of letters, digits, '.', '-' and '_'"
      : key.length < KEY_CHARACTERS.least || key.length > KEY_CHARACTERS.most
        ? `has a key of ${key.length} characters; 16 to 512 are taken`
        : undefined;
  if (problem !== undefined) {
    throw new OperationalError("serving.keys", `line ${number} of ${path} ${problem}`);
  }
  return apiKey(name, key);
}

export function apiKey(name: string, key: string): ApiKey {
  return { name, digest: digestOf(key) };
}

function digestOf(key: string): Buffer {
  return createHash("sha256").update(key).digest();
}

/** The key a request carries, as a bearer or as `x-api-key`. */
function presentedKey({ authorization, ...headers }: IncomingHttpHeaders): string | undefined {
  const bearer = /^bearer +(\S+)$/i.exec(authorization ?? "")?.[1];
  const given = bearer ?? headers["x-api-key"];
  return typeof given === "string" ? given : undefined;
}

/** Who asks: the name of the request's key. */
export function authenticate(headers: IncomingHttpHeaders, keys: readonly ApiKey[]): string {
  if (keys.length === 0) return "anonymous";
  const given = digestOf(presentedKey(headers) ?? "");
  let name: string | undefined;
  // All are compared, so that the time says nothing about which one came close.
  for (const key of keys) if (timingSafeEqual(given, key.digest)) name = key.name;
  if (name !== undefined) return name;
  throw new OperationalError(
    "serving.key",
    "no valid API key; send one of the server's as Authorization: Bearer KEY or x-api-key: KEY",
  );
}
