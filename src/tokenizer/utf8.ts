/**
 * @file UTF-8 of a stretch of a string, into an array the caller keeps.
 *
 * `TextEncoder.encodeInto` needs a substring and costs more than the pieces of a few characters it
 * would encode here. The text is well formed: every high surrogate has its low one.
 */

/** The most bytes that `utf16Length` UTF-16 units of well-formed text can take. */
export function utf8LengthMax(utf16Length: number): number {
  return utf16Length * 3;
}

/** Writes the bytes of `text[start, end)` to `out` (long enough) and returns how many there are. */
export function writeUtf8(text: string, start: number, end: number, out: Uint8Array): number {
  let length = 0;
  for (let i = start; i < end; i++) {
    let code = text.charCodeAt(i);
    if (code < 0x80) {
      out[length++] = code;
      continue;
    }
    if (code < 0x800) {
      out[length++] = 0xc0 | (code >> 6);
    } else {
      if (code >= 0xd800 && code < 0xdc00) {
        code = 0x10000 + ((code - 0xd800) << 10) + (text.charCodeAt(++i) - 0xdc00);
        out[length++] = 0xf0 | (code >> 18);
        out[length++] = 0x80 | ((code >> 12) & 0x3f);
      } else {
        out[length++] = 0xe0 | (code >> 12);
      }
      out[length++] = 0x80 | ((code >> 6) & 0x3f);
    }
    out[length++] = 0x80 | (code & 0x3f);
  }
  return length;
}
