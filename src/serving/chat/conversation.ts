/**
 * @file A conversation as every protocol's messages become it, and what a model may say to it.
 */

export type Turn =
  | { readonly role: "system" | "user"; readonly content: string }
  | {
      readonly role: "assistant";
      readonly content: string;
      readonly reasoning: string | null;
      readonly toolCalls: readonly ToolCall[];
      /** The model goes on from here: the turn is not ended. */
      readonly isPrefix: boolean;
    }
  | { readonly role: "tool"; readonly content: string; readonly toolCallId: string };

export interface ToolCall {
  readonly id: string;
  readonly name: string;
  /** JSON text. */
  readonly arguments: string;
}

export interface Tool {
  readonly name: string;
  readonly description: string;
  /** A JSON Schema. */
  readonly parameters: unknown;
}

export interface Conversation {
  readonly turns: readonly Turn[];
  readonly tools: readonly Tool[];
  /** Whether the model thinks before it answers. */
  readonly thinking: boolean;
}

/** Conversations become prompts by a format: the built-in one, or a checkpoint's template. */
export interface ChatFormat {
  /** "deepseek-v3" or "template". */
  readonly name: string;
  /** How tool calls are written. */
  readonly toolCalls: ToolCallStyle;
  render(conversation: Conversation): Promise<Int32Array>;
  /** Ends what renders, such as a thread. */
  close(): Promise<void>;
}

/**
 * DeepSeek-V3 and R1 write `function<sep>NAME`, then the arguments in a fenced block; V3.1 writes
 * `NAME<sep>ARGUMENTS`.
 */
export type ToolCallStyle = "v3" | "v3.1";
