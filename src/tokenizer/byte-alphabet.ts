/**
 * @file The byte-level alphabet of GPT-2 and its heirs: 256 printable characters, one a byte.
 *
 * Printable bytes of Latin-1 stand for themselves (! to ~, ¡ to ¬, ® to ÿ); the other 68, in rising
 * order, are U+0100 upwards, so that a space is Ġ and a line feed Ċ. A token's name in
 * tokenizer.json is its bytes so spelled.
 */

function isPrintable(byte: number): boolean {
  return (
    (byte >= 0x21 && byte <= 0x7e) ||
    (byte >= 0xa1 && byte <= 0xac) ||
    (byte >= 0xae && byte <= 0xff)
  );
}

function byteCharacters(): string[] {
  let numUnprintable = 0;
  return Array.from({ length: 256 }, (_, byte) =>
    String.fromCharCode(isPrintable(byte) ? byte : 0x100 + numUnprintable++),
  );
}

/** `BYTE_CHARACTERS[byte]` is the character that stands for the byte. */
export const BYTE_CHARACTERS: readonly string[] = byteCharacters();

const BYTE_OF: ReadonlyMap<string, number> = new Map(
  BYTE_CHARACTERS.map((character, byte) => [character, byte]),
);

/** The name of a token: its bytes in the alphabet. */
export function nameOfBytes(bytes: Uint8Array): string {
  let name = "";
  for (const byte of bytes) name += BYTE_CHARACTERS[byte];
  return name;
}

/** The bytes a name spells, or undefined when it has a character outside the alphabet. */
export function bytesOfName(name: string): Uint8Array | undefined {
  const bytes = new Uint8Array(name.length);
  for (let i = 0; i < name.length; i++) {
    const byte = BYTE_OF.get(name[i]!);
    if (byte === undefined) return undefined;
    bytes[i] = byte;
  }
  return bytes;
}
