"use strict";
/**
 * @file Runs an ES module in this process. A file of its own: the Nodes that cannot, cannot parse
 * `import()`.
 */
const url = require("url");

module.exports = function runHere(script) {
  process.argv[1] = script;
  return import(url.pathToFileURL(script).href);
};
