/**
 * @file The two integer encodings of the WebAssembly binary format (LEB128), strings, vectors and
 * sections.
 *
 * Source: WebAssembly core specification, §5.2 (values) and §5.5 (modules).
 */

/** Unsigned LEB128. */
export function unsigned(value: number): number[] {
  const bytes: number[] = [];
  let rest = value;
  for (;;) {
    const low = rest % 128;
    rest = Math.floor(rest / 128);
    if (rest === 0) return [...bytes, low];
    bytes.push(low | 128);
  }
}

/** Signed LEB128 of a 32-bit integer. */
export function signed(value: number): number[] {
  const bytes: number[] = [];
  let rest = value | 0;
  for (;;) {
    const low = rest & 127;
    rest >>= 7;
    const signMatches = (low & 64) === 0 ? rest === 0 : rest === -1;
    if (signMatches) return [...bytes, low];
    bytes.push(low | 128);
  }
}

/** A count, then the items. */
export function vector(items: readonly (readonly number[])[]): number[] {
  return [...unsigned(items.length), ...items.flat()];
}

/** A UTF-8 name. */
export function name(text: string): number[] {
  const bytes = new TextEncoder().encode(text);
  return [...unsigned(bytes.length), ...bytes];
}

/** A section: its number, its length, its content. */
export function section(id: number, content: readonly number[]): number[] {
  return [id, ...unsigned(content.length), ...content];
}
