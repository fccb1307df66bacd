/**
 * @file The address of a module beside the caller's, in the checkout (`.ts`) and in the package
 * (`.js`) alike.
 */

/**
 * `siblingModule("./worker", import.meta.url)`: for `new Worker` and `import()`, which no emit
 * rewrites.
 */
export function siblingModule(path: string, callerUrl: string): URL {
  return new URL(path + (callerUrl.endsWith(".ts") ? ".ts" : ".js"), callerUrl);
}
