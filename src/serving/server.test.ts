/** @file The gates of the server: who gets in, with what, how many, and how it ends. */
import assert from "node:assert/strict";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { connect } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { describe, test } from "node:test";
import { authenticate, readKeyFile } from "./http/keys.ts";
import { RateLimit } from "./http/rate-limit.ts";
import { ROUTES } from "./routes.ts";
import { errorOf, post, raw, startTestServer, until } from "./test-support.ts";

const CHAT = { model: "tiny", messages: [{ role: "user", content: "Hello" }] };
const KEY = "0123456789abcdef";
const POST_HEAD =
  "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\ncontent-type: application/json\r\n";

function keysOf(text: string): ReturnType<typeof readKeyFile> {
  const folder = mkdtempSync(join(tmpdir(), "hadal-keys-"));
  try {
    writeFileSync(join(folder, "keys"), text);
    return readKeyFile(join(folder, "keys"));
  } finally {
    rmSync(folder, { recursive: true });
  }
}

/** Sends bytes as they are; resolves with what came back when the server closed the connection. */
function sendBytes(port: number, bytes: string, { keepsOpen = false } = {}): Promise<string> {
  return new Promise((resolve) => {
    const socket = connect(port, "127.0.0.1");
    let text = "";
    socket.on("data", (part) => {
      text += part;
    });
    socket.on("error", () => {});
    socket.on("close", () => resolve(text));
    if (keepsOpen) socket.write(bytes);
    else socket.end(bytes);
  });
}

describe("keys", () => {
  test("every route needs one, but the page, health and ready", async () => {
    await using server = await startTestServer({ keys: keysOf(`one ${KEY}\n# a comment\n`) });
    const open: string[] = [];
    for (const { method, path } of ROUTES) {
      const asked = path.replace(/\*$/, "tiny");
      const { status } = await raw({ port: server.port, method, path: asked });
      if (status === 401) continue;
      open.push(path);
      assert.equal(status, 200);
    }
    assert.deepEqual(open, ["/", "/health", "/ready"]);
    const unknown = await raw({ port: server.port, path: "/v1/nothing" });
    assert.equal(unknown.status, 401);
  });

  test("are taken as bearer and as x-api-key, and a wrong one is refused like none", async () => {
    await using server = await startTestServer({ keys: keysOf(KEY) });
    const url = `${server.url}/v1/chat/completions`;
    assert.equal((await post(url, CHAT, { authorization: `Bearer ${KEY}` })).status, 200);
    assert.equal((await post(url, CHAT, { "x-api-key": KEY })).status, 200);
    const wrong = await post(url, CHAT, { authorization: `Bearer ${KEY}x` });
    const none = await post(url, CHAT);
    assert.deepEqual(wrong.body, none.body);
    assert.equal(wrong.headers.get("www-authenticate"), "Bearer");
    assert.equal(errorOf(none)["code"], "invalid_api_key");
  });

  test("never reach the log, whatever is done with them", async () => {
    await using server = await startTestServer({ keys: keysOf(`me ${KEY}`) });
    const headers = { authorization: `Bearer ${KEY}` };
    await post(`${server.url}/v1/chat/completions`, { model: KEY }, headers);
    await post(`${server.url}/v1/chat/completions?key=${KEY}`, CHAT, headers);
    await raw({ port: server.port, path: `/${KEY}`, headers });
    assert.equal(server.log.length, 3);
    assert.equal(server.log[0]?.error, "serving.model");
    assert.doesNotMatch(JSON.stringify(server.log), new RegExp(KEY));
    assert.deepEqual(new Set(server.log.map(({ caller }) => caller)), new Set(["me"]));
  });

  test("a file with a short key, a name twice or nothing is refused", () => {
    for (const text of ["short", `a ${KEY}\na ${KEY}x`, `${KEY}\n${KEY}`, "# none\n", "a b c"]) {
      assert.throws(() => keysOf(text), /serving\.keys|key|NAME/, text);
    }
  });

  test("the tenant is the key's name, narrowed by the end user", async () => {
    await using server = await startTestServer({ keys: keysOf(`me ${KEY}`) });
    const headers = { authorization: `Bearer ${KEY}` };
    await post(`${server.url}/v1/chat/completions`, { ...CHAT, user: "x" }, headers);
    await post(`${server.url}/v1/chat/completions`, CHAT, headers);
    assert.deepEqual(
      server.engine.requests.map(({ tenant }) => tenant),
      ["me/x", "me"],
    );
  });

  test("nobody is somebody only where there are no keys", () => {
    assert.equal(authenticate({}, []), "anonymous");
    assert.throws(() => authenticate({ "x-api-key": "" }, keysOf(KEY)), /no valid API key/);
  });
});

describe("Host and Origin", () => {
  test("a name that is not this machine's is refused on a loopback address", async () => {
    await using server = await startTestServer({ allowedHosts: ["hadal.example"] });
    const { port } = server;
    const statusOf = async (host: string): Promise<number> =>
      (await raw({ port, path: "/health", headers: { host } })).status;
    assert.equal(await statusOf("evil.example"), 403);
    assert.equal(await statusOf("a/?x="), 403);
    assert.equal(await statusOf("127.0.0.1.evil.example:80"), 403);
    assert.equal(await statusOf("localhost:1234"), 200);
    assert.equal(await statusOf("hadal.example"), 200);
    assert.equal(await statusOf("[::1]:80"), 200);
  });

  test("a page of another origin is refused, and no origin is reflected", async () => {
    await using server = await startTestServer({ allowedOrigins: ["https://app.example"] });
    const ask = (origin: string, method = "GET"): ReturnType<typeof raw> =>
      raw({ port: server.port, method, path: "/v1/models", headers: { origin } });
    const evil = await ask("https://evil.example");
    assert.equal(evil.status, 403);
    assert.equal(evil.headers["access-control-allow-origin"], undefined);
    assert.equal((await ask("null")).status, 403);
    assert.equal((await ask("https://evil.example", "OPTIONS")).status, 403);
    const app = await ask("https://app.example");
    assert.deepEqual(
      [app.status, app.headers["access-control-allow-origin"]],
      [200, "https://app.example"],
    );
    const own = await ask(`http://127.0.0.1:${server.port}`);
    assert.equal(own.status, 200);
    assert.equal((await ask("https://app.example", "OPTIONS")).status, 204);
  });

  test("a body that a browser sends without asking is refused", async () => {
    await using server = await startTestServer();
    const headers = { "content-type": "text/plain" };
    const reply = await post(`${server.url}/v1/chat/completions`, CHAT, headers);
    assert.equal(reply.status, 415);
  });
});

describe("paths", () => {
  test("are compared as they are: nothing is decoded, joined or cut", async () => {
    await using server = await startTestServer({ keys: keysOf(KEY) });
    const headers = { "x-api-key": KEY };
    for (const path of [
      "//v1/models",
      "/v1/../v1/models",
      "/v1%2fmodels",
      "/V1/models",
      "/v1/models/",
    ]) {
      const { status } = await raw({ port: server.port, path, headers });
      assert.equal(status, 404, path);
    }
    const keyless = await raw({ port: server.port, path: "/health/../v1/models" });
    assert.equal(keyless.status, 401);
  });

  test("a model's name is never a path", async () => {
    await using server = await startTestServer();
    for (const name of ["../../etc/passwd", "..%2f..", "C:\\x", "tiny\0", "%00", "/etc", "con"]) {
      const asked = await raw({ port: server.port, path: `/v1/models/${encodeURI(name)}` });
      assert.equal(asked.status, 404, name);
      const loaded = await post(`${server.url}/v1/models/load`, { model: name });
      assert.equal(loaded.status, 404, name);
      assert.doesNotMatch(JSON.stringify(loaded.body), /passwd|ENOENT/);
    }
  });

  test("tell which methods they have: to OPTIONS, and to one that they have not", async () => {
    await using server = await startTestServer({ keys: keysOf(KEY) });
    const headers = { "x-api-key": KEY };
    for (const { method, path } of ROUTES) {
      const allow = method === "GET" ? "GET, HEAD, OPTIONS" : "POST, OPTIONS";
      const asked = { port: server.port, path: path.replace(/\*$/, "tiny"), headers };
      const refused = await raw({ ...asked, method: method === "GET" ? "POST" : "GET" });
      assert.deepEqual([refused.status, refused.headers["allow"]], [405, allow], path);
      assert.match(refused.text, new RegExp(`use ${allow}`));
      const told = await raw({ ...asked, method: "OPTIONS" });
      assert.deepEqual([told.status, told.headers["allow"], told.text], [204, allow, ""], path);
    }
    const keyless = { port: server.port, path: "/v1/models", method: "OPTIONS" };
    assert.equal((await raw(keyless)).status, 401);
  });

  test("answer HEAD as GET, without the body", async () => {
    await using server = await startTestServer();
    const { port } = server;
    for (const { method, path } of ROUTES) {
      const asked = { port, path: path.replace(/\*$/, "tiny") };
      const head = await raw({ ...asked, method: "HEAD" });
      if (method === "POST") {
        assert.equal(head.status, 405, path);
        continue;
      }
      const got = await raw({ ...asked, method });
      assert.deepEqual([head.status, head.text], [200, ""], path);
      assert.equal(head.headers["content-type"], got.headers["content-type"]);
      if (path !== "/metrics") {
        assert.equal(head.headers["content-length"], got.headers["content-length"]);
      }
    }
  });

  test("with a header twice that says who asks, for what host, is refused", async () => {
    await using server = await startTestServer({ keys: keysOf(KEY) });
    const ask = (lines: string): Promise<string> =>
      sendBytes(server.port, `GET /v1/models HTTP/1.1\r\nx-api-key: ${KEY}\r\n${lines}\r\n`);
    assert.match(await ask("Host: localhost\r\nconnection: close\r\n"), /^HTTP\/1\.1 200/);
    for (const repeated of [
      "Host: localhost\r\nHost: localhost\r\n",
      "Host: localhost\r\nHOST: evil.example\r\n",
      `Host: localhost\r\nx-api-key: ${KEY}\r\n`,
      "Host: localhost\r\nOrigin: http://localhost\r\norigin: https://evil.example\r\n",
      "Host: localhost\r\nauthorization: Bearer a\r\nauthorization: Bearer b\r\n",
    ]) {
      assert.match(await ask(`${repeated}connection: close\r\n`), /^HTTP\/1\.1 400/, repeated);
    }
    assert.match(await ask("connection: close\r\n"), /^HTTP\/1\.1 400/);
  });
});

describe("bodies", () => {
  test("that are too long are refused, declared or not", async () => {
    await using server = await startTestServer({ bodyBytesMax: 1000 });
    const url = `${server.url}/v1/chat/completions`;
    assert.equal((await post(url, `"${"x".repeat(2000)}"`)).status, 413);
    const declared = await sendBytes(
      server.port,
      `${POST_HEAD}content-length: 1000000000\r\n\r\n{`,
    );
    assert.match(declared, /^HTTP\/1\.1 413/);
    const chunk = `3e8\r\n${"x".repeat(1000)}\r\n`;
    const chunked = `${POST_HEAD}transfer-encoding: chunked\r\n\r\n${chunk.repeat(3)}`;
    assert.match(await sendBytes(server.port, chunked, { keepsOpen: true }), /^HTTP\/1\.1 413/);
  });

  test("nested deeper than anything needs are refused before they are parsed", async () => {
    await using server = await startTestServer();
    const url = `${server.url}/v1/chat/completions`;
    const deep = await post(url, "[".repeat(100_000) + "]".repeat(100_000));
    assert.equal(deep.status, 400);
    assert.match(String(errorOf(deep)["message"]), /nested deeper/);
    const text = { ...CHAT, messages: [{ role: "user", content: "[[[[".repeat(100) }] };
    assert.equal((await post(url, text)).status, 200);
  });

  test("that are no JSON, no UTF-8 or no object are refused", async () => {
    await using server = await startTestServer();
    const url = `${server.url}/v1/chat/completions`;
    for (const body of ["", "{", "[]", "null", '"x"', '{"model":"tiny",}']) {
      assert.equal((await post(url, body)).status, 400, body);
    }
    const headers = { "content-type": "application/json" };
    const body = Buffer.from([0x22, 0xff, 0x22]);
    assert.equal((await fetch(url, { method: "POST", headers, body })).status, 400);
  });

  test("with __proto__ or constructor have an unknown field like any other", async () => {
    await using server = await startTestServer();
    const url = `${server.url}/v1/chat/completions`;
    for (const field of ["__proto__", "constructor", "toString"]) {
      const body = `{"model":"tiny","messages":[{"role":"user","content":"x"}],"${field}":{"n":9}}`;
      const reply = await post(url, body);
      assert.deepEqual([reply.status, errorOf(reply)["param"]], [400, field]);
    }
    assert.equal(({} as Record<string, unknown>)["n"], undefined);
  });

  test("with more lists than memory should hold are refused before they are parsed", async () => {
    await using server = await startTestServer({ bodyBytesMax: 2 ** 23 });
    const url = `${server.url}/v1/chat/completions`;
    const lists = await post(url, `[${"[],".repeat(1_048_576)}[]]`);
    assert.equal(lists.status, 400);
    assert.match(String(errorOf(lists)["message"]), /has 1048578 lists and objects/);
  });

  test("are bounded together: what the server cannot hold is told to come again", async () => {
    await using server = await startTestServer({ limits: { bodiesBytesMax: 1000 } });
    const url = `${server.url}/v1/chat/completions`;
    const part = JSON.stringify({ ...CHAT, user: "x".repeat(400) });
    const slow = connect(server.port, "127.0.0.1");
    slow.on("error", () => {});
    slow.write(`${POST_HEAD}content-length: 100000\r\n\r\n${" ".repeat(600)}`);
    await until(() => server.server.numOpen === 1);
    // The slow one's bytes count once they are read; from then on there is no room.
    let refused = await post(url, part);
    while (refused.status === 200) refused = await post(url, part);
    assert.equal(refused.status, 503);
    assert.equal(errorOf(refused)["code"], "server_overloaded");
    assert.ok(Number(refused.headers.get("retry-after")) >= 1);
    slow.destroy();
    await until(() => server.server.numOpen === 0);
    assert.equal((await post(url, part)).status, 200);
    const { text } = await raw({ port: server.port, path: "/metrics" });
    assert.match(text, /hadal_http_request_body_bytes 0\n/);
  });

  test("that come slowly take no place of those that run", async () => {
    await using server = await startTestServer({ requestsMax: 1 });
    const slow = Array.from({ length: 20 }, () => {
      const socket = connect(server.port, "127.0.0.1");
      socket.on("error", () => {});
      socket.write(`${POST_HEAD}content-length: 9\r\n\r\n{`);
      return socket;
    });
    await until(() => server.server.numOpen === slow.length);
    assert.equal((await post(`${server.url}/v1/chat/completions`, CHAT)).status, 200);
    for (const socket of slow) socket.destroy();
    await until(() => server.server.numOpen === 0);
  });

  test("and headers that come too slowly or are too long end the connection", async () => {
    const limits = { headersMs: 50, requestMs: 100 };
    await using server = await startTestServer({ limits });
    const slow = await sendBytes(server.port, "GET /health HTTP/1.1\r\nHost: l", {
      keepsOpen: true,
    });
    assert.match(slow, /^(HTTP\/1\.1 408|$)/);
    const body = `${POST_HEAD}content-length: 100\r\n\r\n{"a"`;
    assert.match(await sendBytes(server.port, body, { keepsOpen: true }), /^(HTTP\/1\.1 408|$)/);
    const long = `GET /health HTTP/1.1\r\nHost: localhost\r\nx: ${"y".repeat(20_000)}\r\n\r\n`;
    assert.match(await sendBytes(server.port, long), /^HTTP\/1\.1 431/);
  });
});

describe("load", () => {
  test("more requests than a key may make get 429 and are told when to come again", async () => {
    await using server = await startTestServer({ requestsPerMinute: 2 });
    const url = `${server.url}/v1/chat/completions`;
    await post(url, CHAT);
    await post(url, CHAT);
    const refused = await post(url, CHAT);
    assert.equal(refused.status, 429);
    assert.ok(Number(refused.headers.get("retry-after")) >= 1);
  });

  test("the rate is counted by time, for each caller apart", () => {
    let now = 0;
    const rate = new RateLimit(60, () => now);
    for (let index = 0; index < 60; index++) rate.take("a");
    assert.throws(() => rate.take("a"), /more than 60/);
    rate.take("b");
    now = 1000;
    rate.take("a");
    assert.throws(() => rate.take("a"), /more than 60/);
  });

  test("more requests than may wait get 503 and are told when to come again", async () => {
    let release = (): void => {};
    const held = new Promise<void>((resolve) => {
      release = resolve;
    });
    await using server = await startTestServer({ requestsMax: 2, beforeToken: () => held });
    const url = `${server.url}/v1/chat/completions`;
    const running = [post(url, CHAT), post(url, CHAT)];
    await until(() => server.engine.numRunning === 2);
    const refused = await post(url, CHAT);
    assert.equal(refused.status, 503);
    assert.ok(Number(refused.headers.get("retry-after")) >= 1);
    release();
    assert.deepEqual(
      (await Promise.all(running)).map(({ status }) => status),
      [200, 200],
    );
    assert.equal((await post(url, CHAT)).status, 200);
  });
});

describe("the end", () => {
  test("draining finishes what runs, refuses what comes, says so, and then is done", async () => {
    let release = (): void => {};
    const held = new Promise<void>((resolve) => {
      release = resolve;
    });
    await using server = await startTestServer({ beforeToken: () => held });
    const { port } = server;
    const running = post(`${server.url}/v1/chat/completions`, CHAT);
    await until(() => server.engine.numRunning === 1);
    assert.equal((await raw({ port, path: "/ready" })).status, 200);
    const drained = server.server.drain();
    const refused = await post(`${server.url}/v1/chat/completions`, CHAT);
    assert.deepEqual([refused.status, errorOf(refused)["code"]], [503, "draining"]);
    assert.ok(Number(refused.headers.get("retry-after")) >= 1);
    const ready = await raw({ port, path: "/ready" });
    assert.deepEqual([ready.status, JSON.parse(ready.text)], [503, { status: "draining" }]);
    assert.equal((await raw({ port, path: "/health" })).status, 200);
    release();
    assert.equal((await running).status, 200);
    await drained;
    assert.equal(server.server.numOpen, 0);
    await assert.rejects(raw({ port, path: "/health" }));
  });

  test("closing ends what runs at once", async () => {
    const held = new Promise<void>(() => {});
    const server = await startTestServer({ beforeToken: () => held });
    const ended = assert.rejects(post(`${server.url}/v1/chat/completions`, CHAT));
    await until(() => server.engine.numRunning === 1);
    await server[Symbol.asyncDispose]();
    await ended;
  });

  test("an unloaded model answers no more, and loads again", async () => {
    await using server = await startTestServer();
    const url = `${server.url}/v1`;
    assert.equal((await post(`${url}/models/unload`, { model: "tiny" })).status, 200);
    const gone = await post(`${url}/chat/completions`, CHAT);
    assert.match(String(errorOf(gone)["message"]), /not loaded/);
    assert.equal((await post(`${url}/models/load`, { model: "tiny" })).status, 200);
  });
});
