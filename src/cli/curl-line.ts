/** @file The command that tries a server out, for people to copy. */

/** What a command tries: a chat, or, with a model that has seen none, what follows a text. */
export function tryingCurl(address: string, model: string, sawChats: boolean): readonly string[] {
  return sawChats ? chatCurl(address, model) : completionCurl(address, model);
}

/** A chat with the model, as lines of a shell. */
function chatCurl(address: string, model: string): readonly string[] {
  const messages = [{ role: "user", content: "Hello!" }];
  return curl(`${address}/v1/chat/completions`, { model, messages, max_tokens: 64 });
}

/** The same for a model that has seen code and no chats: it goes on from a beginning. */
function completionCurl(address: string, model: string): readonly string[] {
  const body = { model, prompt: "export function", max_tokens: 64, temperature: 0.5 };
  return curl(`${address}/v1/completions`, body);
}

function curl(url: string, body: unknown): readonly string[] {
  return [
    `  curl ${url} -H 'content-type: application/json' \\`,
    `    -d '${JSON.stringify(body)}'`,
  ];
}
