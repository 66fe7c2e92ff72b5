// Answers as they are written: one at a time in each conversation, several conversations at once.

import { complete } from "./api.js";
import { settings } from "./store.js";
import { addMessage, ancestors } from "./tree.js";

const running = new Map(); // id of a conversation -> AbortController

export const isRunning = (conversation) => running.has(conversation.id);

export const stop = (conversation) => running.get(conversation.id)?.abort();

/**
 * Write an answer after the message with id `parent`.
 * `onChange(message)` is called for each piece. What became of it is in `message.finish`: "stop", "length", "stopped" or
 * "failed", then with `message.error`; and `message.answer` has its counts.
 */
export async function writeAnswer(conversation, parent, onChange) {
  const message = addMessage(conversation, parent, "assistant", "");
  const controller = new AbortController();
  running.set(conversation.id, controller);
  onChange(message);
  const [path, body] = request(conversation, message);
  const start = performance.now();
  let first = null;
  let last = start;
  try {
    for await (const { text, finish, usage } of complete(path, body, controller.signal)) {
      if (text) {
        last = performance.now();
        first ??= last;
        message.content += text;
      }
      if (finish) message.finish = finish;
      if (usage) message.answer = counts(usage, (first ?? last) - start, last - (first ?? last));
      onChange(message);
    }
  } catch (error) {
    if (error.name === "AbortError") message.finish = "stopped";
    else Object.assign(message, { finish: "failed", error: failure(error) });
  }
  running.delete(conversation.id);
  onChange(message);
  return message;
}

function request(conversation, message) {
  const before = ancestors(conversation, message).filter(({ content }) => content);
  const body = { ...settings.get() };
  if (conversation.context) body.context = conversation.context.id;
  if (conversation.mode === "continue") {
    return ["v1/completions", { ...body, prompt: before.map(({ content }) => content).join("") }];
  }
  const messages = before.map(({ role, content }) => ({ role, content }));
  if (conversation.system) messages.unshift({ role: "system", content: conversation.system });
  return ["v1/chat/completions", { ...body, messages }];
}

/** As it is kept with the conversation. `retryAt`: when the server will take it, in milliseconds. */
const failure = ({ kind, message, retryAfter = 0 }) => ({ kind, message, retryAt: Date.now() + 1000 * retryAfter });

function counts(usage, wait, milliseconds) {
  const { cached_tokens = 0, replayed_tokens = 0, computed_tokens = 0 } = usage.prompt_tokens_details ?? {};
  return {
    tokens: usage.completion_tokens,
    wait: wait / 1000,
    seconds: milliseconds / 1000,
    cached: cached_tokens,
    replayed: replayed_tokens,
    computed: computed_tokens,
  };
}
