// A conversation is a tree of messages. Retrying an answer or editing a message adds a sibling; nothing is overwritten.
//
// {id, title, mode: "chat" | "continue", context: {id, name} | null, system, createdAt, updatedAt,
//  messages: {id: {id, parent, role: "user" | "assistant", content, ...what became of an answer}},
//  selected: {parent id: id of the child that is shown}}; "" is the parent of the first message.

export const ROOT = "";

/** @param {{mode?: string, context?: object, system?: string}} options */
export function newConversation({ mode = "chat", context = null, system = "" } = {}) {
  const now = Date.now();
  const id = crypto.randomUUID?.() ?? randomId();
  return { id, title: "", mode, context, system, createdAt: now, updatedAt: now, messages: {}, selected: {} };
}

// Browsers have `randomUUID` only on https and on this machine.
function randomId() {
  return Array.from(crypto.getRandomValues(new Uint32Array(4)), (number) => number.toString(36)).join("");
}

export function addMessage(conversation, parent, role, content) {
  const message = { id: randomId(), parent, role, content };
  conversation.messages[message.id] = message;
  select(conversation, message);
  conversation.title ||= title(content);
  return message;
}

export function select(conversation, message) {
  conversation.selected[message.parent] = message.id;
  conversation.updatedAt = Date.now();
}

/** Remove a message that nothing follows. */
export function removeMessage(conversation, message) {
  delete conversation.messages[message.id];
  delete conversation.selected[message.parent];
}

/** Messages with the same parent, oldest first. */
export function siblings(conversation, message) {
  return children(conversation, message.parent);
}

const children = (conversation, parent) =>
  Object.values(conversation.messages).filter((message) => message.parent === parent);

/** What is shown: from the first message to the last one. */
export function path(conversation) {
  const messages = [];
  for (let parent = ROOT; ; ) {
    const message = conversation.messages[conversation.selected[parent]] ?? children(conversation, parent).at(-1);
    if (!message) return messages;
    messages.push(message);
    parent = message.id;
  }
}

/** What comes before a message. */
export function ancestors(conversation, message) {
  const messages = [];
  for (let parent = conversation.messages[message.parent]; parent; parent = conversation.messages[parent.parent]) {
    messages.unshift(parent);
  }
  return messages;
}

export const isEmpty = (conversation) => Object.keys(conversation.messages).length === 0;

const title = (content) => {
  const line = content.trim().split("\n")[0];
  return line.length > 60 ? `${line.slice(0, 57).trimEnd()}…` : line;
};

/** A conversation from a file, or null if it is not one: of unknown fields nothing is kept. */
export function parseConversation(value) {
  const isText = (...texts) => texts.every((text) => typeof text === "string");
  if (typeof value !== "object" || !isText(value?.id, value?.title, value?.system)) return null;
  if (!["chat", "continue"].includes(value.mode) || typeof value.messages !== "object") return null;
  const { id, title, system, mode } = value;
  const context = isText(value.context?.id, value.context?.name) ? { id: value.context.id, name: value.context.name } : null;
  const conversation = { ...newConversation({ mode, context, system }), id, title };
  for (const time of ["createdAt", "updatedAt"]) if (Number.isFinite(value[time])) conversation[time] = value[time];
  for (const message of Object.values(value.messages ?? {})) {
    const isMessage = isText(message?.id, message?.parent, message?.content) && ["user", "assistant"].includes(message.role);
    // A parent comes before its children, so there is no circle.
    if (!isMessage || (message.parent !== ROOT && !Object.hasOwn(conversation.messages, message.parent))) return null;
    const { id, parent, role, content, finish, answer } = message;
    conversation.messages[id] = { id, parent, role, content };
    if (isText(finish)) conversation.messages[id].finish = finish;
    if (isAnswer(answer)) conversation.messages[id].answer = answer;
    if (value.selected?.[parent] === id) conversation.selected[parent] = id;
  }
  return conversation;
}

const isAnswer = (answer) =>
  ["tokens", "seconds", "cached", "replayed", "computed"].every((name) => Number.isFinite(answer?.[name]));
