// The server: its routes, and what goes wrong, in words.

/** kind: "gone", "lost", "key", "busy", "draining", "too large", "refused" or "failed". */
class ServerError extends Error {
  constructor(kind, message, retryAfter = 0) {
    super(message);
    this.kind = kind;
    this.retryAfter = retryAfter;
  }
}

const KEY = "goldfinch.key";

/** The API key, kept until this tab is closed. */
export const apiKey = {
  get: () => sessionStorage.getItem(KEY) ?? "",
  set: (key) => sessionStorage.setItem(KEY, key),
};

/** What an error in OpenAI's form means. */
function understood(status, { message, code }, retryAfter) {
  if (status === 401) return new ServerError("key", "This server asks for an API key.");
  if (status === 429) return new ServerError("busy", `The server is busy: ${message}.`, retryAfter);
  if (status === 503) {
    return new ServerError("draining", "The server is shutting down and accepts no new requests. Retry when it is back.", retryAfter);
  }
  if (status === 413 || status === 507 || code === "context_length_exceeded") {
    return new ServerError("too large", `This is more than the server has room for: ${message}`);
  }
  if (status >= 500) return new ServerError("failed", `Something went wrong in the server: ${message}`);
  return new ServerError("refused", message);
}

async function send(path, { method = "GET", body, signal } = {}) {
  const headers = {};
  if (apiKey.get()) headers.Authorization = `Bearer ${apiKey.get()}`;
  if (body && !(body instanceof FormData)) {
    headers["Content-Type"] = "application/json";
    body = JSON.stringify(body);
  }
  let response;
  try {
    response = await fetch(path, { method, headers, body, signal, cache: "no-store" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServerError("gone", "The server does not answer. Check that `goldfinch serve` is still running, then retry.");
  }
  if (response.ok) return response;
  const error = await response.json().then(
    (content) => content.error,
    () => ({ message: response.statusText || `status ${response.status}` }),
  );
  throw understood(response.status, error, Number(response.headers.get("Retry-After")) || 1);
}

const json = async (path, options) => (await send(path, options)).json();

/** The objects of a stream of server-sent events, up to [DONE]; or the only one, if there is nothing to wait for. */
async function* stream(path, options) {
  const response = await send(path, options);
  if (response.headers.get("Content-Type").startsWith("application/json")) {
    yield response.json();
    return;
  }
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  let isComplete = false;
  try {
    for (;;) {
      const { value, done } = await reader.read().catch((error) => {
        if (error.name === "AbortError") throw error;
        return { done: true };
      });
      if (done && isComplete) return;
      if (done) throw new ServerError("lost", "The connection to the server was lost before the end.");
      const lines = (text + value).split(/\r?\n/);
      text = lines.pop();
      for (const line of lines) {
        if (!line.startsWith("data:")) continue;
        const data = line.slice(5).trim();
        isComplete = data === "[DONE]";
        if (isComplete) continue;
        const event = JSON.parse(data);
        if (event.error) throw understood(event.error.type === "server_error" ? 500 : 400, event.error);
        yield event;
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

export const model = async () => (await json("v1/models")).data[0];

export const countTokens = async (text, signal) => (await json("tokenize", { method: "POST", body: { text }, signal })).count;

/** Pieces of an answer: {text}, {finish} and {usage}. */
export async function* complete(path, body, signal) {
  body = { ...body, stream: true, stream_options: { include_usage: true } };
  for await (const chunk of stream(path, { method: "POST", body, signal })) {
    for (const choice of chunk.choices ?? []) {
      const text = choice.delta?.content ?? choice.text;
      if (text) yield { text };
      if (choice.finish_reason) yield { finish: choice.finish_reason };
    }
    if (chunk.usage) yield { usage: chunk.usage };
  }
}

const address = (id) => `v1/contexts/${encodeURIComponent(id)}`;

/** Texts that the server has read. */
export const contexts = {
  list: async () => (await json("v1/contexts")).data,
  rename: (id, name) => json(address(id), { method: "PATCH", body: { name } }),
  remove: (id) => json(address(id), { method: "DELETE" }),
  search: (id, query) => json(`${address(id)}/search?${new URLSearchParams({ query, limit: 50 })}`),
  text: async (id, start, stop) => (await json(`${address(id)}/text?${new URLSearchParams({ start, stop })}`)).text,

  /** Progress of reading files, at last the context. */
  async *upload(files, name, signal) {
    const body = new FormData();
    if (name) body.append("name", name);
    body.append("stream", "true");
    for (const file of files) body.append("files", file, file.name);
    yield* stream("v1/contexts/upload", { method: "POST", body, signal });
  },

  /** The address of its file: of the server, or with an API key, which links cannot send, of a copy in the browser. */
  async file(id) {
    const path = `${address(id)}/file`;
    if (!apiKey.get()) return path;
    return URL.createObjectURL(await (await send(path)).blob());
  },
};
