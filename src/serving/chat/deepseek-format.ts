/**
 * @file DeepSeek-V3's chat format: for checkpoints without a template, those trained here among
 * them.
 *
 *     <bos>SYSTEM <User>QUESTION <Assistant>ANSWER <eos> <User>QUESTION <Assistant>
 *
 * with `<think>\n` after the last `<Assistant>` where the model is to think; earlier reasoning is
 * left out, as DeepSeek's template does. Tools are told in the system text as JSON, their results
 * stand between tool-output marks. A model that has never seen a chat takes this as any other text
 * and goes on in it: it answers in form only.
 *
 * Source: the chat template of DeepSeek-V3's and R1's tokenizer_config.json, restated. The wording
 * that tells the tools is ours: their template has none.
 */
import { SPECIAL_TOKENS } from "../../tokenizer/special-tokens.ts";
import type { Tokenizer } from "../../tokenizer/tokenizer.ts";
import type { ChatFormat, Conversation, Tool, ToolCall, Turn } from "./conversation.ts";
import { PromptWriter } from "./marked-text.ts";
import { TOOL_MARKS } from "./tool-marks.ts";

/** The built-in format for a vocabulary. */
export function deepseekFormat(tokenizer: Tokenizer): ChatFormat {
  return {
    name: "deepseek-v3",
    toolCalls: "v3",
    render: async (conversation) => render(tokenizer, conversation),
    close: async () => {},
  };
}

function render(tokenizer: Tokenizer, { turns, tools, thinking }: Conversation): Int32Array {
  const out = new PromptWriter(tokenizer).marker(tokenizer.tokenName(tokenizer.bosId));
  const system = turns.filter(({ role }) => role === "system").map(({ content }) => content);
  if (tools.length > 0) system.push(toolsText(tools));
  out.text(system.join("\n\n"));
  const spoken = turns.filter(({ role }) => role !== "system");
  for (const [index, turn] of spoken.entries()) {
    writeTurn(out, turn, { eos: tokenizer.tokenName(tokenizer.eosId), before: spoken[index - 1] });
  }
  const last = spoken.at(-1);
  if (last?.role === "assistant" && last.isPrefix) return out.tokens();
  if (last?.role !== "tool") out.marker(SPECIAL_TOKENS.assistant);
  else out.marker(TOOL_MARKS.outputsEnd);
  if (thinking) out.marker(SPECIAL_TOKENS.thinkBegin).text("\n");
  return out.tokens();
}

function writeTurn(
  out: PromptWriter,
  turn: Turn,
  { eos, before }: { readonly eos: string; readonly before: Turn | undefined },
): void {
  if (turn.role === "tool") {
    if (before?.role !== "tool") out.marker(TOOL_MARKS.outputsBegin);
    out.marker(TOOL_MARKS.outputBegin).text(turn.content).marker(TOOL_MARKS.outputEnd);
    return;
  }
  if (turn.role !== "assistant") {
    out.marker(SPECIAL_TOKENS.user).text(turn.content);
    return;
  }
  if (before?.role === "tool") out.marker(TOOL_MARKS.outputsEnd);
  else out.marker(SPECIAL_TOKENS.assistant);
  if (turn.isPrefix && turn.reasoning !== null) {
    out.marker(SPECIAL_TOKENS.thinkBegin).text(`\n${turn.reasoning}`);
    if (turn.content !== "") out.marker(SPECIAL_TOKENS.thinkEnd).text("\n\n");
  }
  out.text(turn.content);
  if (turn.toolCalls.length > 0) writeToolCalls(out, turn.toolCalls);
  if (!turn.isPrefix) out.marker(eos);
}

function writeToolCalls(out: PromptWriter, calls: readonly ToolCall[]): void {
  out.marker(TOOL_MARKS.callsBegin);
  for (const [index, call] of calls.entries()) {
    if (index > 0) out.text("\n");
    out.marker(TOOL_MARKS.callBegin).text("function").marker(TOOL_MARKS.separator);
    out.text(`${call.name}\n\`\`\`json\n${call.arguments}\n\`\`\``).marker(TOOL_MARKS.callEnd);
  }
  out.marker(TOOL_MARKS.callsEnd);
}

function toolsText(tools: readonly Tool[]): string {
  const list = tools.map((tool) => JSON.stringify({ type: "function", function: tool }));
  return `Functions that may be called, one a line:\n${list.join("\n")}`;
}
