/** @file What the operator admits beside loopback names: as requests spell it, or refused. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { checkAdmitted, checkSource } from "./guard.ts";

test("hosts and origins are admitted however the operator spells them", () => {
  const admitted = checkAdmitted({
    allowedHosts: ["Hadal.Example"],
    allowedOrigins: ["https://App.example/"],
  });
  const options = { host: "127.0.0.1", ...admitted };
  checkSource({ host: "hadal.example:8080" }, options);
  checkSource({ host: "localhost", origin: "https://app.example" }, options);
});

test("an entry that no request could match is refused", () => {
  for (const host of ["app.example:80", "http://app.example", "a b", ""]) {
    const entries = { allowedHosts: [host], allowedOrigins: [] };
    assert.throws(() => checkAdmitted(entries), /without scheme, port and path/, host);
  }
  for (const origin of ["app.example", "https://app.example/x", "*", "null", "file:///x"]) {
    const entries = { allowedHosts: [], allowedOrigins: [origin] };
    assert.throws(() => checkAdmitted(entries), /without a path/, origin);
  }
});

test("a server on another loopback address answers to that address", () => {
  const options = { host: "127.0.0.2", allowedHosts: [], allowedOrigins: [] };
  checkSource({ host: "127.0.0.2:8080" }, options);
  assert.throws(() => checkSource({ host: "evil.example" }, options), /not this server's/);
});
