/**
 * @file The formats of strings that can be honoured, as patterns. Dates are dates of the calendar,
 * leap years included; times have no leap second. Source: RFC 3339 and RFC 4122.
 */

const LEAP_YEAR = "(?:[0-9]{2}(?:0[48]|[2468][048]|[13579][26])|(?:[02468][048]|[13579][26])00)";
const DATE = [
  "[0-9]{4}-(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])",
  "[0-9]{4}-(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)",
  "[0-9]{4}-02-(?:0[1-9]|1[0-9]|2[0-8])",
  `${LEAP_YEAR}-02-29`,
].join("|");
const CLOCK = "(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\\.[0-9]{1,9})?";
const ZONE = "(?:Z|[+-](?:[01][0-9]|2[0-3]):[0-5][0-9])";
const BYTE = "(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])";
const HEX = "[0-9a-fA-F]";

export const FORMATS: ReadonlyMap<string, string> = new Map([
  ["date", `^(?:${DATE})$`],
  ["time", `^${CLOCK}${ZONE}$`],
  ["date-time", `^(?:${DATE})T${CLOCK}${ZONE}$`],
  ["uuid", `^${HEX}{8}-${HEX}{4}-${HEX}{4}-${HEX}{4}-${HEX}{12}$`],
  ["ipv4", `^(?:${BYTE}\\.){3}${BYTE}$`],
]);
