#!/usr/bin/env node
"use strict";
/**
 * @file Runs a script with Node 24 or newer: `node bin/node24.js [node flags] script.ts
 * [arguments]`.
 *
 * For `npm` scripts and continuous integration, where `node` may be an older one.
 */
const findNode = require("./find-node.js");

const choice = findNode.chooseNode(findNode.thisMachine());
if (choice.refusal) findNode.refuse(choice.refusal);
else findNode.runInstead(choice.node || process.execPath, process.argv.slice(2));
