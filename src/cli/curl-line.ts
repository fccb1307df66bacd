/** @file The command that tries a server out, for people to copy. */

/** A chat with the model, as lines of a shell. */
export function curlLine(address: string, model: string): readonly string[] {
  const body = { model, messages: [{ role: "user", content: "Hello!" }], max_tokens: 64 };
  return [
    `  curl ${address}/v1/chat/completions -H 'content-type: application/json' \\`,
    `    -d '${JSON.stringify(body)}'`,
  ];
}
