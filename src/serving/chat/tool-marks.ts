/**
 * @file The markers around tool calls in DeepSeek's formats, and how a forced call begins.
 *
 *     v3     <calls><call>function<sep>NAME\n```json\nARGUMENTS\n```<end of call>…<end of calls>
 *     v3.1   <calls><call>NAME<sep>ARGUMENTS<end of call>…<end of calls>
 */
import type { ToolCallStyle } from "./conversation.ts";
import type { PromptWriter } from "./marked-text.ts";

export const TOOL_MARKS = {
  callsBegin: "<｜tool▁calls▁begin｜>",
  callsEnd: "<｜tool▁calls▁end｜>",
  callBegin: "<｜tool▁call▁begin｜>",
  callEnd: "<｜tool▁call▁end｜>",
  separator: "<｜tool▁sep｜>",
  outputsBegin: "<｜tool▁outputs▁begin｜>",
  outputsEnd: "<｜tool▁outputs▁end｜>",
  outputBegin: "<｜tool▁output▁begin｜>",
  outputEnd: "<｜tool▁output▁end｜>",
} as const;

/** What stands before the arguments of a call of one named tool. */
export function writeForcedCall(out: PromptWriter, style: ToolCallStyle, name: string): void {
  out.marker(TOOL_MARKS.callsBegin).marker(TOOL_MARKS.callBegin);
  if (style === "v3.1") out.text(name).marker(TOOL_MARKS.separator);
  else out.text("function").marker(TOOL_MARKS.separator).text(`${name}\n\`\`\`json\n`);
}
