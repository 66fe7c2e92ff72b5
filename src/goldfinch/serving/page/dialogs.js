// Questions: yes or no, or a line of text.

import { byId } from "./dom.js";

async function open(text, yes, value) {
  const dialog = byId("question");
  if (dialog.open) return null; // one at a time
  const input = byId("question-answer");
  byId("question-text").textContent = text;
  byId("question-yes").textContent = yes;
  input.hidden = value === null;
  input.type = "text";
  input.value = value ?? "";
  dialog.returnValue = "";
  byId("question-no").onclick = () => dialog.close();
  dialog.showModal();
  if (value !== null) input.select();
  await new Promise((resolve) => dialog.addEventListener("close", resolve, { once: true }));
  return dialog.returnValue === "yes" ? input.value.trim() : null;
}

/** True if the answer is yes. */
export const confirm = async (text, yes) => (await open(text, yes, null)) !== null;

/** A line of text; null if there is none. */
export const ask = async (text, yes, value = "") => (await open(text, yes, value)) || null;
