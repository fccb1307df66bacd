/**
 * @file Expert loads as JSON: `[[tokens of expert 0, …], …]`, one row a layer, or one row alone.
 *
 * Refused: anything else, rows of different lengths, numbers that are negative or too large to be.
 */
import { OperationalError } from "../../../base/errors.ts";

const MOST_NUMBERS = 10_000_000;

/** The loads of every layer; `name` is what messages call the text. */
export function parseLoads(text: string, name: string): number[][] {
  const rows = rowsOf(readJson(text, name));
  if (rows === null) throw fault(name, "loads are an array of numbers, or one such array a layer");
  const numExperts = rows[0]!.length;
  if (numExperts === 0) throw fault(name, "layer 0 has no experts");
  if (rows.length * numExperts > MOST_NUMBERS) throw fault(name, "there are too many numbers");
  return rows.map((row, layer) => {
    if (row.length !== numExperts) {
      throw fault(name, `layer ${layer} has ${row.length} experts, layer 0 has ${numExperts}`);
    }
    return row.map((load, expert) => {
      if (typeof load === "number" && Number.isFinite(load) && load >= 0 && load <= 1e300) {
        return load;
      }
      const given = JSON.stringify(load)?.slice(0, 40);
      const place = `layer ${layer}, expert ${expert}`;
      throw fault(name, `${place}: ${given} is not a number of tokens; it must be 0 or more`);
    });
  });
}

function readJson(text: string, name: string): unknown {
  try {
    return JSON.parse(text);
  } catch (cause) {
    // The message quotes the text, which may be anything.
    const reason = String(cause).replace(/[^ -~]/g, "?");
    throw fault(name, `it is not JSON: ${reason}`, cause);
  }
}

function rowsOf(value: unknown): readonly (readonly unknown[])[] | null {
  if (!Array.isArray(value) || value.length === 0) return null;
  if (value.every((row) => Array.isArray(row))) return value;
  return value.some((item) => Array.isArray(item)) ? null : [value];
}

function fault(name: string, problem: string, cause?: unknown): OperationalError {
  return new OperationalError("parallel.loads", `${name}: ${problem}`, { name }, cause);
}
