/**
 * @file What hostile and careless clients send: refused by name, never a crash, never somebody
 * else's harm. The classes are those of advisories against other servers of the last three years.
 */
import assert from "node:assert/strict";
import { connect } from "node:net";
import { describe, test } from "node:test";
import { Random } from "../base/random.ts";
import { pagePolicy } from "./chat-page.ts";
import {
  dropConnections,
  errorOf,
  heldResources,
  post,
  raw,
  startTestServer,
  tinyTokenizer,
  until,
} from "./test-support.ts";

const CHAT = { model: "tiny", messages: [{ role: "user", content: "Hello" }] };
const PATHS = {
  chat: "/v1/chat/completions",
  completion: "/v1/completions",
  message: "/v1/messages",
  response: "/v1/responses",
} as const;
const BODIES = {
  chat: CHAT,
  completion: { model: "tiny", prompt: "x" },
  message: { ...CHAT, max_tokens: 5 },
  response: { model: "tiny", input: "x" },
} as const;
const HEAD = `POST ${PATHS.chat} HTTP/1.1\r\nHost: localhost\r\ncontent-type: application/json\r\n`;
const SAMPLING = ["temperature", "top_p", "top_k", "min_p", "seed"];
const NUMBERS: Readonly<Record<keyof typeof BODIES, readonly string[]>> = {
  chat: [
    ...SAMPLING,
    ...["n", "max_tokens", "max_completion_tokens", "top_logprobs"],
    ...["presence_penalty", "frequency_penalty"],
  ],
  completion: [...SAMPLING, "n", "best_of", "max_tokens", "logprobs", "presence_penalty"],
  message: ["temperature", "top_p", "top_k", "max_tokens"],
  response: ["temperature", "top_p", "max_output_tokens"],
};
const WRONG = ["-3", "-9007199254740992", "1e308", '"NaN"', '"5"', "1e999", "[]", "{}", "true"];

describe("fields", () => {
  test("a number out of its range or of another kind is refused by name", async () => {
    await using server = await startTestServer();
    for (const [protocol, path] of Object.entries(PATHS) as [keyof typeof BODIES, string][]) {
      for (const field of NUMBERS[protocol]) {
        for (const value of WRONG) {
          const { [field as "model"]: _, ...rest } = BODIES[protocol] as Record<string, unknown>;
          const plain = JSON.stringify(rest);
          const reply = await post(server.url + path, `${plain.slice(0, -1)},"${field}":${value}}`);
          assert.equal(reply.status, 400, `${protocol} ${field} ${value}`);
          assert.match(String(errorOf(reply)["message"]), new RegExp(field));
        }
      }
    }
    assert.equal(server.engine.requests.length, 0);
  });

  test("a field of the wrong kind never becomes an internal error", async () => {
    await using server = await startTestServer();
    const seed = 11;
    const random = new Random(seed, "fields");
    const values = [
      null,
      0,
      "",
      [],
      {},
      true,
      [[]],
      [{}],
      { a: { b: 1 } },
      "x".repeat(5000),
      [1, "a"],
    ];
    const names = [
      ...["messages", "tools", "tool_choice", "stop", "stream_options", "logit_bias"],
      ...[
        "response_format",
        "thinking",
        "user",
        "prompt",
        "suffix",
        "echo",
        "input",
        "instructions",
      ],
      ...["text", "reasoning", "system", "metadata", "stop_sequences", "model", "encoding_format"],
      ...["output_config", "chat_template_kwargs", "store", "include", "logprobs"],
    ];
    for (let round = 0; round < 200; round++) {
      const [protocol, path] = (Object.entries(PATHS) as [keyof typeof BODIES, string][])[
        random.below(4)
      ]!;
      const changes = Array.from({ length: 1 + random.below(2) }, () => [
        names[random.below(names.length)]!,
        values[random.below(values.length)],
      ]);
      const body = { ...BODIES[protocol], ...Object.fromEntries(changes) };
      const { status } = await post(server.url + path, body);
      assert.ok(
        status < 500,
        `seed ${seed}: ${protocol} ${JSON.stringify(changes)} gave ${status}`,
      );
    }
  });

  test("huge numbers of answers and prompts are refused at once", async () => {
    await using server = await startTestServer({ bodyBytesMax: 2 ** 24 });
    const url = server.url + PATHS.completion;
    const before = process.memoryUsage().rss;
    assert.equal((await post(server.url + PATHS.chat, { ...CHAT, n: 1e9 })).status, 400);
    assert.equal((await post(url, { ...BODIES.completion, best_of: 1e9 })).status, 400);
    const prompt = new Array(1_000_000).fill("x");
    assert.equal((await post(url, { model: "tiny", prompt })).status, 400);
    const many = { model: "tiny", prompt: new Array(64).fill("x"), n: 16 };
    assert.match(String(errorOf(await post(url, many))["message"]), /64 prompts with 16 choices/);
    assert.equal(server.engine.requests.length, 0);
    assert.ok(process.memoryUsage().rss - before < 300 * 2 ** 20);
  });

  test("a token outside the vocabulary is refused wherever it stands", async () => {
    await using server = await startTestServer();
    const { vocabSize } = server.engine.description;
    const url = server.url + PATHS.completion;
    for (const prompt of [[vocabSize], [-1], [1.5], [1, "a"], [[0], [2 ** 40]], [1e9]]) {
      assert.equal((await post(url, { model: "tiny", prompt })).status, 400, String(prompt));
    }
    for (const token of [String(vocabSize), "-1", "1e3", "0x1", " 1", "__proto__", ""]) {
      const body = `{"model":"tiny","prompt":"x","logit_bias":{${JSON.stringify(token)}:1}}`;
      assert.equal((await post(url, body)).status, 400, token);
    }
    const { status } = await post(`${server.url}/detokenize`, {
      model: "tiny",
      tokens: [vocabSize],
    });
    assert.equal(status, 400);
    assert.equal(server.engine.requests.length, 0);
  });

  test("what is not supported is refused by name, and what changes nothing is taken", async () => {
    await using server = await startTestServer();
    const refused = {
      store: true,
      audio: { voice: "x" },
      web_search_options: {},
      prediction: { type: "content" },
      functions: [],
      function_call: "auto",
      metadata: { a: "b" },
      chat_template: "{{ x }}",
      chat_template_kwargs: { chat_template: "{{ x }}" },
      modalities: ["audio"],
    };
    for (const [field, value] of Object.entries(refused)) {
      const reply = await post(server.url + PATHS.chat, { ...CHAT, [field]: value });
      assert.equal(reply.status, 400, field);
      assert.match(String(errorOf(reply)["param"]), new RegExp(field));
    }
    const neutral = { store: false, metadata: {}, n: 1, parallel_tool_calls: true, user: null };
    assert.equal((await post(server.url + PATHS.chat, { ...CHAT, ...neutral })).status, 200);
    for (const field of ["previous_response_id", "conversation"]) {
      const reply = await post(server.url + PATHS.response, { ...BODIES.response, [field]: "x" });
      assert.deepEqual([reply.status, errorOf(reply)["param"]], [400, field]);
    }
  });

  test("a URL in a message is refused, not fetched", async () => {
    await using server = await startTestServer();
    const image = { type: "image_url", image_url: { url: "file:///etc/passwd" } };
    const messages = [{ role: "user", content: [image] }];
    const reply = await post(server.url + PATHS.chat, { model: "tiny", messages });
    assert.equal(errorOf(reply)["param"], "messages[0].content[0].type");
  });
});

describe("prompts", () => {
  test("no text of a user, of any role, becomes a marker", async () => {
    await using server = await startTestServer();
    const { tokenizer } = server.engine;
    const markers = tokenizer.vocabulary.addedTokens.map(({ content }) => content);
    const all = markers.join(" and ");
    const plain = (content: string): unknown => ({
      model: "tiny",
      messages: [
        { role: "system", content },
        { role: "user", content },
        { role: "assistant", content, tool_calls: [call(content)] },
        { role: "tool", tool_call_id: "1", content },
        { role: "user", content },
      ],
    });
    const call = (text: string): unknown => ({
      id: "1",
      type: "function",
      function: { name: "f", arguments: JSON.stringify({ text }) },
    });
    await post(server.url + PATHS.chat, plain("harmless"));
    await post(server.url + PATHS.chat, plain(all));
    const [harmless, hostile] = server.engine.requests.map(({ prompt }) =>
      [...prompt].filter((token) => tokenizer.addedToken(token) !== undefined),
    );
    assert.deepEqual(hostile, harmless);
    assert.match(
      tokenizer.decode(server.engine.requests[1]!.prompt),
      new RegExp(`${markers[1]} and`),
    );
  });

  test("a prompt longer than the context is refused with both lengths, never cut", async () => {
    await using server = await startTestServer({ contextTokens: 32 });
    const reply = await post(server.url + PATHS.completion, {
      model: "tiny",
      prompt: "word ".repeat(100),
    });
    assert.equal(errorOf(reply)["code"], "context_length_exceeded");
    assert.match(String(errorOf(reply)["message"]), /has \d+ tokens; the context of tiny takes 32/);
    const content = "word ".repeat(100);
    const chat = { model: "tiny", messages: [{ role: "user", content }] };
    const refused = [
      reply,
      await post(server.url + PATHS.chat, chat),
      await post(server.url + PATHS.response, { model: "tiny", input: content }),
    ];
    const params = refused.map((one) => errorOf(one)["param"]);
    assert.deepEqual(params, ["prompt", "messages", "input"]);
  });
});

describe("faults", () => {
  test("an engine that throws harms that request alone, and tells nothing", async () => {
    let isBroken = true;
    const beforeToken = (): void => {
      if (isBroken) throw new TypeError("bad pointer 0x7ffe at /secret/path.ts");
    };
    await using server = await startTestServer({ beforeToken });
    const broken = await post(server.url + PATHS.chat, CHAT);
    assert.equal(broken.status, 500);
    assert.doesNotMatch(JSON.stringify(broken.body), /0x7ffe|secret|\bat\b /);
    assert.match(server.log.at(-1)!.error!, /0x7ffe/);
    isBroken = false;
    assert.equal((await post(server.url + PATHS.chat, CHAT)).status, 200);
    assert.equal(server.engine.numRunning, 0);
  });

  test("an engine that is full says when to come again", async () => {
    await using server = await startTestServer({ says: "x" });
    server.engine.numRunning = Infinity;
    const { status, headers } = await post(server.url + PATHS.chat, { ...CHAT, stream: true });
    assert.deepEqual([status, headers.get("retry-after")], [503, "2"]);
  });
});

describe("clients that leave", () => {
  test("end their request within a token, streamed or not", async () => {
    await using server = await startTestServer({
      says: "word ".repeat(5000),
      contextTokens: 2 ** 20,
    });
    for (const stream of [true, false]) {
      const controller = new AbortController();
      const gone = fetch(server.url + PATHS.chat, {
        method: "POST",
        headers: { "content-type": "application/json" },
        body: JSON.stringify({ ...CHAT, stream }),
        signal: controller.signal,
      }).then((response) => response.text());
      await until(() => server.engine.numRunning === 1);
      controller.abort();
      await assert.rejects(gone);
      await until(() => server.engine.numRunning === 0 && server.server.numOpen === 0);
    }
    assert.equal(server.engine.numAborted, 2);
  });

  test("and drop their connection anywhere, hundreds of times, leave nothing behind", async () => {
    await using server = await startTestServer({ says: "word ".repeat(200) });
    await raw({ port: server.port, path: "/health", headers: { connection: "close" } });
    const held = heldResources();
    const body = JSON.stringify({ ...CHAT, stream: true });
    const request = `${HEAD}content-length: ${body.length}\r\n\r\n${body}`;
    await dropConnections(server.port, request, { count: 500, atOnce: 25, seed: 3, waitMsMax: 6 });
    // The last ones may reach the server after their clients have left.
    let text = "";
    while (!/http_request_body_bytes 0\n/.test(text) || !/http_connections_open 1\n/.test(text)) {
      ({ text } = await raw({ port: server.port, path: "/metrics" }));
    }
    await until(() => server.engine.numRunning === 0 && server.server.numOpen === 0);
    await until(() => heldResources() <= held);
    assert.match(text, /hadal_client_disconnects_total \d+/);
    assert.ok(server.log.length > 0);
    assert.ok(server.log.every(({ status }) => status < 500));
  });

  test("that read nothing stop the engine, and are cut off", async () => {
    let produced = 0;
    await using server = await startTestServer({
      says: "word ".repeat(40_000),
      contextTokens: 2 ** 20,
      limits: { stallMs: 300 },
      beforeToken: () => {
        produced++;
      },
    });
    const body = JSON.stringify({ ...CHAT, stream: true });
    const socket = connect(server.port, "127.0.0.1");
    socket.on("error", () => {});
    socket.pause();
    socket.write(`${HEAD}content-length: ${body.length}\r\n\r\n${body}`);
    await until(() => server.engine.numRunning === 1);
    await until(() => server.engine.numRunning === 0);
    assert.ok(produced < 39_000, `${produced} tokens were made for nobody`);
    socket.destroy();
  });
});

describe("texts for people", () => {
  test("no line of the log is a client's", async () => {
    await using server = await startTestServer();
    const model = "x\r\n2026 forged line";
    await post(server.url + PATHS.chat, { ...CHAT, model });
    const entry = server.log.at(-1)!;
    assert.equal(entry.route, PATHS.chat);
    assert.doesNotMatch(entry.error!, /forged/);
  });

  test("labels of metrics come from closed sets", async () => {
    await using server = await startTestServer();
    for (let index = 0; index < 20; index++) {
      await raw({ port: server.port, path: `/made-up-${index}` });
      await post(server.url + PATHS.chat, { ...CHAT, model: `made-up-${index}` });
    }
    const { text, headers } = await raw({ port: server.port, path: "/metrics" });
    assert.doesNotMatch(text, /made-up/);
    assert.equal(headers["content-type"], "text/plain; version=0.0.4; charset=utf-8");
    assert.match(text, /hadal_http_requests_total\{route="unknown",status="404"\} 20/);
  });

  test("the page may load nothing, frame nothing, run nothing but its own script", async () => {
    await using server = await startTestServer();
    const { text, headers } = await raw({ port: server.port, path: "/" });
    const policy = String(headers["content-security-policy"]);
    assert.equal(policy, pagePolicy(text));
    assert.match(policy, /^default-src 'none'; script-src 'sha256-[^']+'; style-src 'sha256-/);
    assert.doesNotMatch(policy, /unsafe|\*/);
    assert.doesNotMatch(
      text,
      /innerHTML|insertAdjacentHTML|document\.write| on[a-z]+=|https?:\/\//,
    );
  });

  test("ten thousand characters without a break are tokens in linear time", () => {
    const tokenizer = tinyTokenizer();
    const before = tokenizer.steps.characters;
    tokenizer.encode("a".repeat(100_000));
    assert.ok(tokenizer.steps.characters - before < 400_000);
  });
});
