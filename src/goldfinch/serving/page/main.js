// The page: what is shown, and what happens when something is pressed.

import * as answers from "./answers.js";
import * as api from "./api.js";
import { confirm, ask } from "./dialogs.js";
import { announce, byId, element, icon } from "./dom.js";
import { tokens } from "./format.js";
import { showPanel } from "./panel.js";
import { readFiles } from "./reading.js";
import { openSettings, setUpSettings } from "./settings.js";
import { showConversations, showTexts, welcome } from "./sidebar.js";
import { conversations as store } from "./store.js";
import { Transcript } from "./transcript.js";
import { addMessage, isEmpty, newConversation, path, removeMessage, ROOT, select } from "./tree.js";

const MODE = "goldfinch.mode";
const state = {
  model: {},
  contexts: [],
  conversations: [],
  current: newConversation({ mode: localStorage.getItem(MODE) ?? "chat" }),
  isPanelOpen: matchMedia("(min-width: 75rem)").matches,
  numReading: 0, // selections of files that are on their way into the server
  waiting: null, // the notice that the words in the field are sent when all of these have been read
};

const transcript = new Transcript(byId("transcript"), {
  edit: (message, content) => answer(addMessage(state.current, message.parent, "user", content).id),
  retry: (message) => {
    if (message.finish === "failed" && !message.content) removeMessage(state.current, message); // nothing to go back to
    answer(message.parent);
  },
  select: (message) => {
    select(state.current, message);
    keep(state.current);
    show();
  },
});

/** The text that the current conversation is about, if the server still has it. */
const currentContext = () => state.contexts.find(({ id }) => id === state.current.context?.id);

function show() {
  const { current, contexts } = state;
  const context = currentContext();
  const isRunning = answers.isRunning(current);
  byId("title").textContent = current.title || "New conversation";
  document.title = current.title ? `${current.title} · GoldFinch` : "GoldFinch";
  showTexts(contexts, current.context?.id, chooseContext);
  showConversations(state.conversations, current.id, byId("find-conversation").value, conversationActions);
  transcript.show(current, isRunning);
  if (isEmpty(current)) {
    byId("transcript").replaceChildren(welcome(current, chooseFiles));
  }
  showAbout(context);
  byId("send").hidden = isRunning;
  byId("stop").hidden = !isRunning;
  byId("mode").hidden = !isEmpty(current);
  for (const input of document.getElementsByName("mode")) input.checked = input.value === current.mode;
  byId("message").placeholder =
    current.mode === "continue" ? "Write, and the model continues" : context ? `Ask about ${context.name}` : "Write a message";
}

function showAbout(context) {
  const chip = byId("about");
  const { context: wanted } = state.current;
  chip.hidden = !wanted;
  chip.disabled = !context;
  if (wanted) {
    const detail = context ? tokens(context.num_tokens) : "no longer on the server";
    chip.replaceChildren(
      icon("text"),
      element("span", { class: "name" }, context?.name ?? wanted.name),
      element("span", { class: "note" }, detail),
    );
  }
  const isOpen = Boolean(context) && state.isPanelOpen;
  chip.setAttribute("aria-expanded", String(isOpen));
  if (isOpen && (byId("panel").hidden || byId("panel").context !== context)) showPanel(context, state.model, panelActions(context));
  byId("panel").context = context;
  byId("panel").hidden = !isOpen;
}

/** Keep a conversation in the browser, and at the top of the list. */
function keep(conversation) {
  state.conversations = [conversation, ...state.conversations.filter(({ id }) => id !== conversation.id)];
  store.save(conversation).catch(fail);
}

function fail(error) {
  if (error.kind === "key") {
    askForKey();
    return;
  }
  const dismiss = element("button", { type: "button", onclick: () => byId("notice").replaceChildren() }, "Dismiss");
  const retry = element("button", { type: "button", onclick: load }, "Retry");
  const canRetry = ["gone", "lost", "busy", "draining"].includes(error.kind);
  byId("notice").replaceChildren(element("p", {}, error.message), canRetry ? retry : dismiss);
}

async function askForKey() {
  const key = await ask("This server asks for an API key. It is kept until this tab is closed.", "Use this key");
  if (key === null) return;
  api.apiKey.set(key);
  await load();
}

/** What the server has. */
async function load() {
  byId("notice").replaceChildren();
  try {
    const model = await api.model();
    state.model = model.goldfinch ?? {};
    byId("model-name").textContent = model.id;
    state.contexts = await api.contexts.list();
  } catch (error) {
    fail(error);
  }
  show();
}

// Answers

async function answer(parent) {
  const conversation = state.current;
  if (answers.isRunning(conversation)) return;
  byId("notice").replaceChildren();
  const isShown = () => state.current === conversation;
  let isNew = true;
  const message = await answers.writeAnswer(conversation, parent, (message) => {
    if (!isShown()) return;
    if (isNew) {
      keep(conversation);
      show();
    }
    isNew = false;
    transcript.update(message);
  });
  keep(conversation);
  if (isShown()) show();
  if (message.error?.kind === "key") askForKey();
  announce(message.error?.message ?? `Answer: ${message.content}`);
}

function send() {
  const field = byId("message");
  const { current } = state;
  if (answers.isRunning(current)) return;
  if (state.numReading && isEmpty(current) && !current.context && field.value.trim()) {
    const text = "Your message will be sent when the text has been read.";
    state.waiting = element("p", {}, text);
    byId("notice").replaceChildren(state.waiting);
    announce(text);
    return;
  }
  let parent = path(current).at(-1)?.id ?? ROOT;
  if (field.value.trim()) parent = addMessage(current, parent, "user", field.value).id;
  else if (current.mode !== "continue" || parent === ROOT) return; // only a text continues without new words
  field.value = "";
  answer(parent);
}

// Conversations

const conversationActions = {
  choose: (conversation) => open(conversation),
  rename: async (conversation) => {
    const title = await ask("Name of this conversation", "Rename", conversation.title);
    if (title === null) return;
    conversation.title = title;
    keep(conversation);
    show();
  },
  remove: async (conversation) => {
    if (!(await confirm(`Delete “${conversation.title}”? It is kept nowhere else.`, "Delete"))) return;
    answers.stop(conversation);
    state.conversations = state.conversations.filter(({ id }) => id !== conversation.id);
    store.remove(conversation.id).catch(fail);
    if (state.current.id === conversation.id) open(another());
    else show();
  },
};

/** A new conversation of the same kind. */
const another = (context = null) => newConversation({ mode: state.current.mode, system: state.current.system, context });

function open(conversation) {
  state.current = conversation;
  toggleSidebar(false);
  show();
  byId("message").focus();
}

// Texts

function chooseContext(context) {
  const about = { id: context.id, name: context.name };
  if (!isEmpty(state.current)) open(another(about));
  else {
    state.current.context = state.current.context?.id === context.id ? null : about;
    open(state.current);
  }
}

const panelActions = (context) => ({
  fail,
  close: () => togglePanel(false),
  rename: async () => {
    const name = await ask("Name of this text", "Rename", context.name);
    if (name !== null) await change(() => api.contexts.rename(context.id, name));
  },
  download: async () => {
    try {
      const link = element("a", { href: await api.contexts.file(context.id), download: `${context.name}.gfc` });
      link.click();
    } catch (error) {
      fail(error);
    }
  },
  remove: async () => {
    const text = `Delete “${context.name}” from the server? Download it first if you may want it back.`;
    if (await confirm(text, "Delete")) await change(() => api.contexts.remove(context.id));
  },
});

async function change(action) {
  try {
    await action();
  } catch (error) {
    fail(error);
    return;
  }
  await load();
}

function chooseFiles() {
  byId("files").click();
}

async function read(files) {
  byId("notice").replaceChildren();
  state.numReading += 1;
  await readFiles(files, {
    onError: fail,
    onContext: (context) => {
      state.contexts = [context, ...state.contexts.filter(({ id }) => id !== context.id)];
      if (isEmpty(state.current)) state.current.context = null;
      chooseContext(context);
    },
  });
  state.numReading -= 1;
  if (state.numReading || !state.waiting) return;
  state.waiting.remove();
  state.waiting = null;
  if (state.current.context) send(); // else it could not be read, and the notice says why, or it was cancelled
}

// The frame

function toggleSidebar(isOpen) {
  document.body.classList.toggle("sidebar-open", isOpen);
  byId("shade").hidden = !isOpen;
  byId("open-sidebar").setAttribute("aria-expanded", String(isOpen));
}

function togglePanel(isOpen) {
  state.isPanelOpen = isOpen;
  show();
  (isOpen ? byId("panel").querySelector("button") : byId("about")).focus();
}

function setUp() {
  const icons = {
    "close-sidebar": "close",
    "add-text": "plus",
    "toggle-theme": "theme",
    "open-sidebar": "menu",
    attach: "plus",
    send: "send",
    stop: "stop",
    "close-settings": "close",
  };
  for (const [id, name] of Object.entries(icons)) byId(id).append(icon(name));
  byId("new-conversation").prepend(icon("plus"));
  const on = (id, event, action) => byId(id).addEventListener(event, action);

  on("open-sidebar", "click", () => {
    toggleSidebar(true);
    byId("close-sidebar").focus();
  });
  for (const id of ["close-sidebar", "shade"]) on(id, "click", () => toggleSidebar(false));
  on("about", "click", () => togglePanel(!state.isPanelOpen));
  on("toggle-theme", "click", () => globalThis.toggleTheme());
  on("new-conversation", "click", () => open(another()));
  on("find-conversation", "input", show);
  on("open-settings", "click", () => openSettings(state.current));
  setUpSettings({
    onSystem: (system) => {
      state.current.system = system;
      if (!isEmpty(state.current)) keep(state.current);
    },
    getConversations: () => state.conversations,
    onImport: (conversations) => {
      for (const conversation of conversations) keep(conversation);
      show();
    },
    fail,
  });

  on("composer", "submit", (event) => {
    event.preventDefault();
    send();
  });
  on("message", "keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    send();
  });
  on("stop", "click", () => answers.stop(state.current));
  document.addEventListener("keydown", (event) => {
    if (event.key !== "Escape" || document.querySelector("dialog[open]")) return;
    if (document.body.classList.contains("sidebar-open")) toggleSidebar(false);
    else if (answers.isRunning(state.current)) answers.stop(state.current);
    else if (byId("panel").contains(document.activeElement)) togglePanel(false);
  });
  on("mode", "change", (event) => {
    state.current.mode = event.target.value;
    localStorage.setItem(MODE, state.current.mode);
    show();
  });

  for (const id of ["attach", "add-text"]) on(id, "click", chooseFiles);
  on("files", "change", ({ target }) => {
    read([...target.files]);
    target.value = "";
  });
  setUpDrop();
}

function setUpDrop() {
  const hasFiles = (event) => event.dataTransfer?.types.includes("Files");
  const showDrop = (isShown) => {
    byId("drop").hidden = !isShown;
  };
  document.addEventListener("dragover", (event) => {
    event.preventDefault(); // a file that is dropped never replaces the page
    showDrop(hasFiles(event));
  });
  document.addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) showDrop(false);
  });
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    showDrop(false);
    if (hasFiles(event)) read([...event.dataTransfer.files]);
  });
}

/** What the browser kept, after what may have begun in the meantime. */
async function loadConversations() {
  try {
    const kept = await store.open();
    const known = new Set(state.conversations.map(({ id }) => id));
    state.conversations.push(...kept.filter(({ id }) => !known.has(id)));
    show();
  } catch {
    fail(new Error("This browser keeps nothing for this page: conversations end when it is closed."));
  }
}

setUp();
await load();
await loadConversations();
byId("message").focus();
