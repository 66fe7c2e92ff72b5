// System prompt, sampling, and conversations as a file.

import { byId, element } from "./dom.js";
import { settings } from "./store.js";
import { parseConversation } from "./tree.js";

const SAMPLING = ["temperature", "top_p", "top_k", "min_p", "max_tokens", "seed"];
const form = byId("settings").querySelector("form");

export function openSettings(conversation) {
  form.elements.system.value = conversation.system;
  const values = settings.get();
  for (const name of SAMPLING) form.elements[name].value = values[name] ?? "";
  byId("settings").showModal();
}

/** actions: {onSystem(text), getConversations(), onImport(conversations), fail(error)}. */
export function setUpSettings({ onSystem, getConversations, onImport, fail }) {
  // Kept as they are typed, if they are valid.
  form.addEventListener("input", ({ target }) => {
    if (target.name === "system") onSystem(target.value.trim());
    else if (target.validity.valid) keepSampling();
    target.setAttribute("aria-invalid", String(!target.validity.valid));
  });
  byId("export").addEventListener("click", () => {
    const content = { format: "goldfinch conversations", version: 1, conversations: getConversations() };
    const url = URL.createObjectURL(new Blob([JSON.stringify(content, null, 1)], { type: "application/json" }));
    element("a", { href: url, download: "goldfinch-conversations.json" }).click();
    setTimeout(() => URL.revokeObjectURL(url), 60_000);
  });
  byId("import").addEventListener("click", () => byId("import-file").click());
  byId("import-file").addEventListener("change", async ({ target }) => {
    byId("settings").close();
    try {
      onImport(await parseFile(target.files[0]));
    } catch (error) {
      fail(error);
    }
    target.value = "";
  });
}

function keepSampling() {
  const inputs = SAMPLING.map((name) => form.elements[name]).filter(({ value, validity }) => value !== "" && validity.valid);
  settings.set(Object.fromEntries(inputs.map(({ name, valueAsNumber }) => [name, valueAsNumber])));
}

async function parseFile(file) {
  let content = null;
  try {
    content = JSON.parse(await file.text());
  } catch {
    // It is not JSON: refused below.
  }
  const conversations = Array.isArray(content?.conversations) ? content.conversations.map(parseConversation) : [null];
  if (conversations.includes(null)) throw new Error(`${file.name} does not hold conversations exported from this page.`);
  return conversations;
}
