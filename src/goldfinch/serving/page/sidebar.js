// The lists on the left: texts and conversations.

import { byId, element, icon, iconButton } from "./dom.js";
import { tokens } from "./format.js";

/** Texts on the server. `current`: id of the one that is asked about. */
export function showTexts(contexts, current, choose) {
  const items = contexts.map((context) =>
    entry(context.name, tokens(context.num_tokens), context.id === current, () => choose(context)),
  );
  if (!items.length) items.push(element("li", { class: "note" }, "Drop a text anywhere on this page."));
  byId("texts").replaceChildren(...items);
}

/** Conversations whose title or messages contain `query`. actions: {choose, rename, remove}, each with a conversation. */
export function showConversations(conversations, current, query, actions) {
  const wanted = query.trim().toLowerCase();
  const matches = ({ title, messages }) =>
    [title, ...Object.values(messages).map(({ content }) => content)].some((text) => text.toLowerCase().includes(wanted));
  byId("find-conversation").hidden = conversations.length < 5 && !query;
  const items = conversations
    .filter((conversation) => !wanted || matches(conversation))
    .map((conversation) =>
      entry(
        conversation.title || "Untitled",
        conversation.context?.name,
        conversation.id === current,
        () => actions.choose(conversation),
        iconButton("edit", `Rename ${conversation.title}`, () => actions.rename(conversation)),
        iconButton("remove", `Delete ${conversation.title}`, () => actions.remove(conversation)),
      ),
    );
  if (!items.length) items.push(element("li", { class: "note" }, wanted ? "None has these words." : "None yet."));
  byId("conversations").replaceChildren(...items);
}

function entry(label, detail, isCurrent, choose, ...tools) {
  return element(
    "li",
    { class: "entry" },
    element(
      "button",
      { type: "button", onclick: choose, "aria-current": isCurrent && "true" },
      element("span", { class: "name" }, label),
      detail && element("span", { class: "note" }, detail),
    ),
    tools.length > 0 && element("span", { class: "tools" }, tools),
  );
}

/** What an empty conversation says. */
export function welcome({ context, mode }, chooseFiles) {
  if (context) {
    return element(
      "div",
      { class: "welcome" },
      element("h2", {}, context.name),
      element("p", {}, mode === "chat" ? "It has been read. Ask about it." : "It has been read. Write on where it ends."),
    );
  }
  return element(
    "div",
    { class: "welcome" },
    element("h2", {}, "Read a text once, then ask about it"),
    element("p", {}, "Drop files here. They are read to the end and kept on the server, small enough to keep for good."),
    element("button", { type: "button", class: "primary", onclick: chooseFiles }, icon("text"), "Choose files"),
    element("p", { class: "note" }, "Text files (UTF-8), or a .gfc file that was read before. Or write a message without one."),
  );
}
