/**
 * @file What a model says, taken apart while it comes: reasoning, content, tool calls.
 *
 *     reasoning … </think> content … <calls> … <end of calls>
 *
 * Text that may yet turn out to be a marker is held back. The result does not depend on how the
 * text is cut into pieces, so a stream adds up to the whole. A call is announced when its name is
 * complete, its arguments follow as they come; a call that breaks off keeps what there was. Text
 * after the calls is content. Where no tools were offered their markers are content too.
 */
import { TOOL_MARKS } from "./tool-marks.ts";

/** A part of an answer, in order. */
export type Delta =
  | { readonly kind: "reasoning"; readonly text: string }
  | { readonly kind: "content"; readonly text: string }
  | { readonly kind: "toolCall"; readonly index: number; readonly name: string }
  | { readonly kind: "toolArguments"; readonly index: number; readonly text: string };

type State = "start" | "reasoning" | "content" | "calls" | "callName" | "callArguments";

const THINK = { begin: "<think>", end: "</think>" };
const FENCE = { begin: "\n```json\n", end: "\n```" };
const NAME_CHARACTERS_MAX = 256;

export interface AnswerForm {
  /** Whether the prompt ends inside the reasoning. */
  readonly isThinking: boolean;
  readonly hasTools: boolean;
  /** The prompt ends where the arguments of this tool begin. */
  readonly forcedTool: string | null;
}

export class AnswerParser {
  readonly #hasTools: boolean;
  readonly #isForced: boolean;
  #state: State;
  #held = "";
  #numCalls = 0;
  /** Whether the arguments of the call stand in a fenced block. */
  #isFenced = false;
  /** White space between the parts is dropped; it is neither's. */
  #dropsSpace = false;
  #out: Delta[] = [];

  constructor({ isThinking, hasTools, forcedTool }: AnswerForm) {
    this.#hasTools = hasTools;
    this.#isForced = forcedTool !== null;
    this.#state = isThinking ? "reasoning" : "start";
    this.#dropsSpace = isThinking;
    if (forcedTool === null) return;
    this.#state = "callArguments";
    this.#announce(forcedTool);
  }

  push(text: string): Delta[] {
    this.#held += text;
    while (this.#advance()) {
      // Each turn ends one state.
    }
    return this.#take();
  }

  /** What was held back, when no more comes. */
  end(): Delta[] {
    const held = this.#held;
    this.#held = "";
    if (this.#state === "callArguments" && this.#isForced) this.#give(held);
    else if (this.#state === "callArguments") this.#give(this.#isFenced ? trimFence(held) : held);
    else if (this.#state === "callName") this.#emit("content", TOOL_MARKS.callBegin + held);
    else if (this.#state !== "calls") this.#give(held);
    return this.#take();
  }

  #take(): Delta[] {
    const out = this.#out;
    this.#out = [];
    return out;
  }

  #advance(): boolean {
    switch (this.#state) {
      case "start":
        return this.#readStart();
      case "reasoning":
        return this.#readUntil([THINK.end], () => this.#enter("content"));
      case "content":
        return this.#readUntil(this.#hasTools ? [TOOL_MARKS.callsBegin] : [], () =>
          this.#enter("calls"),
        );
      case "calls":
        return this.#readBetweenCalls();
      case "callName":
        return this.#readName();
      case "callArguments":
        return this.#readArguments();
    }
  }

  /** A model that was not asked to may begin to think. */
  #readStart(): boolean {
    const text = this.#held.trimStart();
    if (text.startsWith(THINK.begin)) {
      this.#held = text.slice(THINK.begin.length);
      this.#enter("reasoning");
      return true;
    }
    if (THINK.begin.startsWith(text)) return false;
    this.#state = "content";
    return true;
  }

  #enter(state: State): void {
    this.#state = state;
    this.#dropsSpace = state === "reasoning" || state === "content";
  }

  /** Give out text up to the first of the marks; true if it was there. */
  #readUntil(marks: readonly string[], onMark: () => void): boolean {
    const found = marks
      .map((mark) => ({ mark, at: this.#held.indexOf(mark) }))
      .filter(({ at }) => at >= 0)
      .sort((a, b) => a.at - b.at)[0];
    if (found === undefined) {
      const kept = heldBack(this.#held, marks);
      this.#give(this.#held.slice(0, this.#held.length - kept));
      this.#held = this.#held.slice(this.#held.length - kept);
      return false;
    }
    const before = this.#held.slice(0, found.at);
    this.#held = this.#held.slice(found.at + found.mark.length);
    this.#give(this.#state === "reasoning" ? before.trimEnd() : before);
    onMark();
    return true;
  }

  #readBetweenCalls(): boolean {
    const text = this.#held.trimStart();
    for (const mark of [TOOL_MARKS.callBegin, TOOL_MARKS.callsEnd]) {
      if (text.startsWith(mark)) {
        this.#held = text.slice(mark.length);
        this.#enter(mark === TOOL_MARKS.callBegin ? "callName" : "content");
        return true;
      }
      if (mark.startsWith(text)) return false;
    }
    this.#enter("content");
    return true;
  }

  #readName(): boolean {
    const at = this.#held.indexOf(TOOL_MARKS.separator);
    if (at < 0) {
      if (this.#held.length <= NAME_CHARACTERS_MAX) return false;
      this.#emit("content", TOOL_MARKS.callBegin);
      this.#enter("content");
      return true;
    }
    const head = this.#held.slice(0, at).trim();
    const rest = this.#held.slice(at + TOOL_MARKS.separator.length);
    this.#isFenced = head === "function";
    const fence = this.#isFenced ? rest.indexOf(FENCE.begin) : 0;
    if (fence < 0) {
      if (rest.length <= NAME_CHARACTERS_MAX) return false;
      this.#emit("content", TOOL_MARKS.callBegin);
      this.#enter("content");
      return true;
    }
    this.#announce(this.#isFenced ? rest.slice(0, fence).trim() : head);
    this.#held = this.#isFenced ? rest.slice(fence + FENCE.begin.length) : rest;
    this.#state = "callArguments";
    return true;
  }

  #readArguments(): boolean {
    if (this.#isForced) return this.#readUntil([], () => {});
    const mark = this.#isFenced ? FENCE.end + TOOL_MARKS.callEnd : TOOL_MARKS.callEnd;
    return this.#readUntil([mark], () => this.#enter("calls"));
  }

  #announce(name: string): void {
    this.#out.push({ kind: "toolCall", index: this.#numCalls++, name });
  }

  #give(text: string): void {
    if (this.#state === "callArguments") {
      if (text !== "") this.#out.push({ kind: "toolArguments", index: this.#numCalls - 1, text });
      return;
    }
    const kind = this.#state === "reasoning" ? "reasoning" : "content";
    this.#emit(kind, text);
  }

  #emit(kind: "reasoning" | "content", text: string): void {
    const given = this.#dropsSpace ? text.trimStart() : text;
    if (given === "") return;
    this.#dropsSpace = false;
    this.#out.push({ kind, text: given });
  }
}

/** White space before a mark may be dropped with it, so it is held back as well. */
function heldBack(text: string, marks: readonly string[]): number {
  let most = 0;
  for (const mark of marks) {
    for (let length = Math.min(mark.length - 1, text.length); length > most; length--) {
      if (text.endsWith(mark.slice(0, length))) most = length;
    }
  }
  if (!marks.includes(THINK.end)) return most;
  return text.length - text.slice(0, text.length - most).trimEnd().length;
}

/** Arguments that broke off inside the end of their fenced block. */
function trimFence(text: string): string {
  for (let length = Math.min(FENCE.end.length, text.length); length > 0; length--) {
    if (text.endsWith(FENCE.end.slice(0, length))) return text.slice(0, -length);
  }
  return text;
}
