/** @file A checkpoint's template: rendered as its makers do, and never more than it may. */
import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { Random } from "../../base/random.ts";
import { tinyTokenizer } from "../test-support.ts";
import type { Conversation } from "./conversation.ts";
import { deepseekFormat } from "./deepseek-format.ts";
import { TemplateFormat } from "./template.ts";

/** The shape of DeepSeek's templates, in our own words. */
const TEMPLATE =
  "{{ bos_token }}{% for m in messages %}" +
  "{% if m['role'] == 'system' %}{{ m['content'] }}" +
  "{% elif m['role'] == 'user' %}{{ '<｜User｜>' + m['content'] }}" +
  "{% elif m['role'] == 'assistant' %}{{ '<｜Assistant｜>' + m['content'] + eos_token }}{% endif %}" +
  "{% endfor %}{% if add_generation_prompt %}{{ '<｜Assistant｜>' }}" +
  "{% if thinking %}{{ '<think>\\n' }}{% endif %}{% endif %}";

/** Without end for one conversation, quick for every other. */
const SLOW =
  "{% if messages[1].content == 'loop' %}{% for i in range(100000) %}" +
  "{% for j in range(100000) %}{% set x = i * j %}{% endfor %}{% endfor %}{% endif %}" +
  "{{ messages[1].content }}";

function conversation(...contents: readonly string[]): Conversation {
  const turns = contents.map((content, index) =>
    index % 2 === 0
      ? ({ role: "user", content } as const)
      : ({
          role: "assistant",
          content,
          reasoning: null,
          toolCalls: [],
          isPrefix: false,
        } as const),
  );
  return { turns: [{ role: "system", content: "Be kind." }, ...turns], tools: [], thinking: false };
}

describe("a template", () => {
  test("gives the same tokens as the built-in format, whose shape it has", async () => {
    const tokenizer = tinyTokenizer();
    await using template = new TemplateFormat(tokenizer, TEMPLATE);
    for (const thinking of [false, true]) {
      const asked = { ...conversation("Hi", "Hello.", "And 中文 🌍?"), thinking };
      const expected = await deepseekFormat(tokenizer).render(asked);
      assert.deepEqual(await template.render(asked), expected);
    }
  });

  test("sees no marker in the names and ids that tools bring", async () => {
    const tokenizer = tinyTokenizer();
    const text =
      "{{ tools | tojson }}{% for m in messages %}{{ m.content }}{{ m.tool_call_id }}" +
      "{% for c in m.tool_calls or [] %}{{ c.id }}{% endfor %}{% endfor %}";
    await using template = new TemplateFormat(tokenizer, text);
    const marker = "<｜User｜>";
    const call = { id: marker, name: "f", arguments: "{}" };
    const tokens = await template.render({
      turns: [
        { role: "user", content: "a" },
        { role: "assistant", content: "", reasoning: null, toolCalls: [call], isPrefix: false },
        { role: "tool", content: "x", toolCallId: marker },
      ],
      tools: [{ name: "f", description: "", parameters: { properties: { [marker]: {} } } }],
      thinking: false,
    });
    assert.deepEqual(
      [...tokens].filter((token) => tokenizer.addedToken(token) !== undefined),
      [],
    );
    assert.equal(tokenizer.decode(tokens).split(marker).length - 1, 3);
  });

  test("that is closed fails what waits as the engine would", async () => {
    const template = new TemplateFormat(
      tinyTokenizer(),
      "{% for i in range(100000000) %}{% endfor %}",
    );
    const waiting = assert.rejects(template.render(conversation("a")), { code: "engine.closed" });
    await template.close();
    await waiting;
  });

  test("cannot be made to see a marker in what a user wrote", async () => {
    const tokenizer = tinyTokenizer();
    await using template = new TemplateFormat(tokenizer, TEMPLATE);
    const seed = 5;
    const random = new Random(seed, "markers");
    const parts = [
      ...tokenizer.vocabulary.addedTokens.map(({ content }) => content),
      ...["<", "｜", "User", "<｜Us", "er｜>", "\ue000", "\ue001", " ", "{{ x }}", "{% raw %}"],
    ];
    const addedOf = (tokens: Int32Array): number[] =>
      [...tokens].filter((token) => tokenizer.addedToken(token) !== undefined);
    const harmless = addedOf(await template.render(conversation("a", "b", "c")));
    for (let round = 0; round < 200; round++) {
      const text = (): string =>
        Array.from({ length: 1 + random.below(6) }, () => parts[random.below(parts.length)]!).join(
          "",
        );
      const tokens = await template.render(conversation(text(), text(), text()));
      assert.deepEqual(addedOf(tokens), harmless, `seed ${seed}, round ${round}`);
    }
  });

  test("that loops is ended in time, and the next rendering works", async () => {
    const limits = { timeMs: 300, outputCharacters: 1000, threads: 1 };
    await using template = new TemplateFormat(tinyTokenizer(), SLOW, limits);
    await assert.rejects(template.render(conversation("loop")), /took longer than 300 ms/);
    await using fresh = new TemplateFormat(tinyTokenizer(), SLOW);
    assert.ok((await fresh.render(conversation("fine"))).length > 0);
  });

  test("that is slow for one conversation keeps no other waiting", async () => {
    const limits = { timeMs: 60_000, outputCharacters: 1000, threads: 2 };
    const template = new TemplateFormat(tinyTokenizer(), SLOW, limits);
    let isSettled = false;
    const slow = assert
      .rejects(template.render(conversation("loop")), { code: "engine.closed" })
      .then(() => {
        isSettled = true;
      });
    const others = Array.from({ length: 5 }, (_, index) => conversation(`${index}`));
    const lengths = await Promise.all(
      others.map(async (one) => (await template.render(one)).length),
    );
    assert.ok(lengths.every((length) => length > 0));
    assert.equal(isSettled, false);
    await template.close();
    await slow;
  });

  test("that is slow for many is refused to those whose turn does not come", async () => {
    const limits = { timeMs: 200, outputCharacters: 1000, threads: 2 };
    await using template = new TemplateFormat(tinyTokenizer(), SLOW, limits);
    const crowd = await Promise.allSettled(
      Array.from({ length: 6 }, () => template.render(conversation("loop"))),
    );
    const codes = crowd.map((one) => (one.status === "rejected" ? one.reason.code : "none"));
    assert.deepEqual(new Set(codes), new Set(["serving.invalid", "serving.busy"]));
  });

  test("that writes without end, nests or reaches for the machine is refused", async () => {
    const limits = { timeMs: 5000, outputCharacters: 1000, threads: 1 };
    const refused = async (source: string, problem: RegExp): Promise<void> => {
      await using template = new TemplateFormat(tinyTokenizer(), source, limits);
      await assert.rejects(template.render(conversation("x")), problem);
    };
    await refused("{% for i in range(5000) %}x{% endfor %}", /more than 1000 characters/);
    await refused(`{{ ${"(".repeat(20_000)}1${")".repeat(20_000)} }}`, /says: |memory/);
    await refused("{{ raise_exception('roles must alternate') }}", /roles must alternate/);
    await using reaching = new TemplateFormat(
      tinyTokenizer(),
      "{{ ''.constructor }}{{ messages.constructor }}{{ process }}{{ ''['__proto__'] }}",
      limits,
    );
    const text = tinyTokenizer().decode(await reaching.render(conversation("x")).catch(() => []));
    assert.doesNotMatch(text, /function|native|object/i);
  });
});
