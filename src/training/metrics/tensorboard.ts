/**
 * @file TensorBoard event files: scalars in TFRecord frames that a stock TensorBoard reads.
 *
 *     frame   length u64 · maskedCrc32c(length) u32 · data · maskedCrc32c(data) u32, little-endian
 *     data    a tensorflow.Event: wall_time = 1 (double), step = 2 (int64), and one of
 *             file_version = 3, summary = 5 { value = 1 { tag = 1, simple_value = 2 } },
 *             session_log = 7 { status = 1 }
 *
 * The first frame of a file gives the version, the second announces a session at its first step. A
 * resumed run writes a new file, and TensorBoard drops what older files of the folder say about
 * that step and later ones.
 *
 * Sources: tensorflow/core/util/event.proto, framework/summary.proto, lib/io/record_writer (field
 * numbers and framing).
 */
import { maskedCrc32c } from "./crc32c.ts";
import { MessageWriter } from "./protobuf.ts";

const FILE_VERSION = "brain.Event:2";
const SESSION_START = 1;

/** Names are shown as groups by what stands before the slash: "loss/train". */
export type Scalars = Readonly<Record<string, number>>;

/** The beginning of an event file whose first scalars are of `step`. */
export function encodeFileStart(wallSeconds: number, step: number): Uint8Array {
  const version = new MessageWriter().double(1, wallSeconds).text(3, FILE_VERSION).finish();
  const start = new MessageWriter()
    .double(1, wallSeconds)
    .varint(2, step)
    .bytes(7, new MessageWriter().varint(1, SESSION_START).finish())
    .finish();
  return concatenate([frame(version), frame(start)]);
}

/** One event with every scalar of a step. */
export function encodeScalars(wallSeconds: number, step: number, scalars: Scalars): Uint8Array {
  const summary = new MessageWriter();
  for (const [tag, value] of Object.entries(scalars)) {
    summary.bytes(1, new MessageWriter().text(1, tag).float(2, value).finish());
  }
  const event = new MessageWriter()
    .double(1, wallSeconds)
    .varint(2, step)
    .bytes(5, summary.finish());
  return frame(event.finish());
}

/** A name TensorBoard finds and sorts by age. */
export function eventFileName(wallSeconds: number, sequence: number): string {
  const seconds = String(Math.floor(wallSeconds)).padStart(10, "0");
  return `events.out.tfevents.${seconds}.hadal.${sequence}`;
}

function frame(data: Uint8Array): Uint8Array {
  const bytes = new Uint8Array(data.length + 16);
  const fields = new DataView(bytes.buffer);
  fields.setBigUint64(0, BigInt(data.length), true);
  fields.setUint32(8, maskedCrc32c(bytes.subarray(0, 8)), true);
  bytes.set(data, 12);
  fields.setUint32(12 + data.length, maskedCrc32c(data), true);
  return bytes;
}

function concatenate(parts: readonly Uint8Array[]): Uint8Array {
  const bytes = new Uint8Array(parts.reduce((total, part) => total + part.length, 0));
  let offset = 0;
  for (const part of parts) {
    bytes.set(part, offset);
    offset += part.length;
  }
  return bytes;
}
