// One text: what it takes, what is in it, where a word is.

import { contexts } from "./api.js";
import { byId, element, iconButton } from "./dom.js";
import { count, flow, tokens } from "./format.js";
import { memoryPicture } from "./memory.js";

const AROUND = 150; // tokens shown before and after a place

/** Show a context. actions: {rename, download, remove, close, fail(error)}. */
export function showPanel(context, model, actions) {
  const action = (name, label, run) => element("button", { type: "button", onclick: run, class: name }, label);
  byId("panel").replaceChildren(
    element(
      "div",
      { class: "heading-row" },
      element("h2", {}, context.name),
      iconButton("close", "Close", actions.close),
    ),
    element("p", { class: "note" }, `${tokens(context.num_tokens)}, read on ${date(context.created_at)}`),
    element(
      "div",
      { class: "buttons" },
      action("rename", "Rename", actions.rename),
      action("download", "Download", actions.download),
      action("remove", "Delete", actions.remove),
    ),
    element("h3", {}, "Memory"),
    memoryPicture(context, model),
    element("h3", {}, "Search"),
    ...search(context, actions.fail),
    element("h3", {}, context.documents.length === 1 ? "Document" : "Documents"),
    element(
      "ul",
      { class: "places" },
      context.documents.map(({ name, start, stop }) =>
        place(
          [element("span", { class: "name" }, name), element("span", { class: "number" }, count(stop - start))],
          async () => [flow(await contexts.text(context.id, start, Math.min(start + 2 * AROUND, stop)))],
          actions.fail,
        ),
      ),
    ),
  );
}

const date = (seconds) => new Date(1000 * seconds).toLocaleDateString(undefined, { dateStyle: "medium" });

function search(context, fail) {
  const input = element("input", { type: "search", placeholder: "A word or a phrase", "aria-label": "Search this text" });
  const summary = element("p", { class: "note", role: "status" });
  const places = element("ul", { class: "places" });
  const form = element(
    "form",
    {
      role: "search",
      onsubmit: async (event) => {
        event.preventDefault();
        const query = input.value.trim();
        if (!query) return;
        try {
          const { matches, total } = await contexts.search(context.id, query);
          const shown = matches.length < total ? `, the first ${matches.length} of them here` : "";
          summary.textContent = total ? `${count(total)} ${total === 1 ? "place" : "places"}${shown}` : `“${query}” is not in this text.`;
          places.replaceChildren(...matches.map((match) => found(context, match, fail)));
        } catch (error) {
          fail(error);
        }
      },
    },
    input,
    element("button", {}, "Search"),
  );
  return [form, summary, places];
}

function found(context, { start, document, before, match, after }, fail) {
  return place(
    [
      element("span", { class: "excerpt" }, "…", before, element("mark", {}, match), after, "…"),
      element("span", { class: "note" }, document && `${document} · `, `token ${count(start)}`),
    ],
    () => passage(context, start, match),
    fail,
  );
}

/** An entry of a list that opens to show the text there. `load`: the nodes of it. */
function place(label, load, fail) {
  const text = element("blockquote", { hidden: true });
  const button = element(
    "button",
    {
      type: "button",
      "aria-expanded": "false",
      onclick: async () => {
        try {
          if (!text.hasChildNodes()) text.append(...(await load()));
          text.hidden = !text.hidden;
          text.querySelector("mark")?.scrollIntoView({ block: "nearest" });
          button.setAttribute("aria-expanded", String(!text.hidden));
        } catch (error) {
          fail(error);
        }
      },
    },
    label,
  );
  return element("li", {}, button, text);
}

/** The text around a position (tokens), in which what was found there is marked. */
async function passage({ id, num_tokens }, position, match) {
  const [before, rest] = await Promise.all([
    position > 0 ? contexts.text(id, Math.max(position - AROUND, 0), position) : "",
    contexts.text(id, position, Math.min(position + AROUND, num_tokens)),
  ]);
  // Its first token may begin before it, and its letters may be of another case.
  const start = Math.max(rest.indexOf(match), 0);
  const end = start + match.length;
  return [flow(before + rest.slice(0, start)), element("mark", {}, rest.slice(start, end)), flow(rest.slice(end))];
}
