#!/usr/bin/env node
"use strict";
/**
 * @file The `hadal` command: starts the command line with a Node that can run it.
 *
 * A checkout holds TypeScript, which Node 24 runs as it stands; the published package holds what
 * `tsc` made of it.
 */
const fs = require("fs");
const path = require("path");
const findNode = require("./find-node.js");

const checkout = path.join(__dirname, "..", "src", "cli", "start.ts");
const published = path.join(__dirname, "..", "dist", "cli", "start.js");
const script = fs.existsSync(checkout) ? checkout : published;

const choice = findNode.chooseNode(findNode.thisMachine());
if (choice.refusal) findNode.refuse(choice.refusal);
else if (choice.node) {
  // Node 24.0 to 24.2 run TypeScript with a warning on every start; the packages may bring one of
  // those.
  const flags = ["--disable-warning=ExperimentalWarning", script];
  findNode.runInstead(choice.node, flags.concat(process.argv.slice(2)));
} else require("./run-here.js")(script);
