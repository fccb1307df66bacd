/**
 * @file The page at `/`: one HTML file, sent with a policy that lets it load nothing from anywhere.
 *
 * Its script and style are admitted by their digests, so nothing that a model or a user writes can
 * run in it. The page is public, what it asks for is not: it sends the key that its user types.
 */
import { createHash } from "node:crypto";
import { readFileSync } from "node:fs";
import type { Handler } from "./service.ts";

export const chatPage: Handler = async (exchange) => {
  const html = readFileSync(new URL("./chat-page.html", import.meta.url), "utf8");
  exchange.send(200, "text/html; charset=utf-8", html, {
    "content-security-policy": pagePolicy(html),
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
  });
};

/** The policy for a page whose only script and style are those in it. */
export function pagePolicy(html: string): string {
  const digest = (tag: string): string => {
    const content = new RegExp(`<${tag}>([\\s\\S]*?)</${tag}>`).exec(html)?.[1] ?? "";
    return `'sha256-${createHash("sha256").update(content).digest("base64")}'`;
  };
  return [
    "default-src 'none'",
    `script-src ${digest("script")}`,
    `style-src ${digest("style")}`,
    "connect-src 'self'",
    "base-uri 'none'",
    "form-action 'none'",
    "frame-ancestors 'none'",
  ].join("; ");
}
