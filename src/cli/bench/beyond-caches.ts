/**
 * @file How long arrays are that no cache of this machine holds: what row kernels are measured on.
 *
 * Together they have twice the bytes of the largest cache, as the system reports it (Linux does).
 * Where memory is too short for that, or nothing is reported, the row says so.
 */
import { readdirSync, readFileSync } from "node:fs";
import { freemem } from "node:os";
import { join } from "node:path";
import { floorDiv } from "../../base/integers.ts";

const CACHES = "/sys/devices/system/cpu/cpu0/cache";
/** Where caches are small or unknown. */
const LEAST_BYTES = 128 * 2 ** 20;
/** The device's memory ends at 4 GiB, and other things lie in it. */
const MOST_BYTES = 3 * 2 ** 30;
const MEBIBYTE = 2 ** 20;
/** Whole tasks. */
const ROWS_MULTIPLE = 8;

export interface ArrayRows {
  readonly rows: number;
  /** What is to be said of them; "" if they are beyond the caches. */
  readonly remark: string;
}

/** How many rows, `rowBytes` being those of a row of all arrays together. */
export function rowsBeyondCaches(
  rowBytes: number,
  cacheBytes: number | null = largestCacheBytes(),
  freeBytes: number = freemem(),
): ArrayRows {
  const wanted = Math.max(LEAST_BYTES, 2 * (cacheBytes ?? 0));
  const bytes = Math.min(wanted, MOST_BYTES, freeBytes / 2);
  const rows = ROWS_MULTIPLE * Math.max(1, floorDiv(bytes, ROWS_MULTIPLE * rowBytes));
  if (cacheBytes === null) return { rows, remark: "caches unknown" };
  const isShort = bytes < wanted;
  const cache = `a cache of ${Math.round(cacheBytes / MEBIBYTE)} MiB`;
  return { rows, remark: isShort ? `in part within ${cache}` : "" };
}

/** Null where the system does not report its caches. */
function largestCacheBytes(): number | null {
  try {
    const sizes = readdirSync(CACHES)
      .filter((name) => name.startsWith("index"))
      .map((name) => readFileSync(join(CACHES, name, "size"), "utf8").trim());
    const bytes = sizes.map((size) => 1024 * Number(/^(\d+)K$/.exec(size)?.[1]));
    return bytes.length > 0 && bytes.every((value) => value > 0) ? Math.max(...bytes) : null;
  } catch {
    return null;
  }
}
