/** @file The package's main entry: what every other entry shares. */
export { VERSION } from "./base/version.ts";
