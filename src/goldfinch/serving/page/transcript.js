// The conversation as it is read: messages, branches, what each answer cost.

import { countTokens } from "./api.js";
import { announce, element, icon, iconButton, svg } from "./dom.js";
import { count, duration, threeDigits, tokens } from "./format.js";
import { renderMarkdown } from "./markdown.js";
import { path, siblings } from "./tree.js";

/** Messages in `container`. actions: {edit(message, content), retry(message), select(message)}. */
export class Transcript {
  #conversation = null;
  #drawing = 0;

  constructor(container, actions) {
    this.container = container;
    this.actions = actions;
  }

  /** Show a conversation from its first message; `isRunning`: its last answer is being written. */
  show(conversation, isRunning) {
    const focused = document.activeElement?.dataset.focus;
    const isOther = this.#conversation !== conversation;
    const atEnd = isOther || this.#isAtEnd();
    this.#conversation = conversation;
    const messages = path(conversation);
    this.container.dataset.mode = conversation.mode;
    this.container.replaceChildren(
      ...messages.map((message) => this.#article(message, isRunning && message === messages.at(-1))),
    );
    if (focused) this.container.querySelector(`[data-focus="${focused}"]`)?.focus();
    if (atEnd) this.#scrollToEnd();
  }

  /** Show what was added to an answer, at most once per frame. */
  update(message) {
    cancelAnimationFrame(this.#drawing);
    this.#drawing = requestAnimationFrame(() => {
      const content = this.container.querySelector(`[data-id="${message.id}"] .content`);
      if (!content) return;
      const atEnd = this.#isAtEnd();
      this.#fill(content, message);
      if (atEnd) this.#scrollToEnd();
    });
  }

  #isAtEnd() {
    const { scrollTop, scrollHeight, clientHeight } = this.container;
    return scrollHeight - scrollTop - clientHeight < 80;
  }

  #scrollToEnd() {
    this.container.scrollTop = this.container.scrollHeight;
  }

  #fill(content, message) {
    // In "continue text", the text is shown as it is; what a person wrote always is.
    if (message.role === "user" || this.#conversation.mode === "continue") content.textContent = message.content;
    else renderMarkdown(content, message.content);
  }

  #article(message, isRunning) {
    const isUser = message.role === "user";
    const content = element("div", { class: "content" });
    this.#fill(content, message);
    const article = element(
      "article",
      { class: message.role, "data-id": message.id, "aria-label": isUser ? "You" : "Answer", "aria-busy": isRunning && "true" },
      content,
    );
    if (isRunning) {
      if (!message.content) article.append(element("p", { class: "waiting" }, "Reading"));
      return article;
    }
    article.append(...outcome(message, () => this.actions.retry(message)));
    const tools = element("div", { class: "tools" }, this.#switcher(message));
    if (isUser) tools.append(this.#tool("edit", "Edit", message, () => this.#edit(article, message)));
    else if (message.finish !== "failed") tools.append(this.#tool("retry", "Retry", message, () => this.actions.retry(message)));
    tools.append(this.#tool("copy", "Copy", message, () => copy(message.content)));
    if (message.answer) tools.append(cost(message.answer));
    article.append(tools);
    return article;
  }

  #tool(name, label, message, action) {
    return iconButton(name, label, action, { "data-focus": `${name}:${message.id}` });
  }

  #switcher(message) {
    const all = siblings(this.#conversation, message);
    if (all.length < 2) return null;
    const index = all.indexOf(message);
    const to = (step, name, label) =>
      iconButton(name, label, () => this.actions.select(all[index + step]), {
        disabled: !all[index + step],
        "data-focus": `${name}:${message.parent}`,
      });
    return element(
      "span",
      { class: "switcher", role: "group", "aria-label": "Branches" },
      to(-1, "left", "Previous branch"),
      element("span", {}, `${index + 1}/${all.length}`),
      to(1, "right", "Next branch"),
    );
  }

  #edit(article, message) {
    const text = element("textarea", { "aria-label": "Edit your message", rows: "3" });
    text.value = message.content;
    const hint = element("span", { class: "note", role: "status" });
    const form = element(
      "form",
      {
        class: "edit",
        onsubmit: (event) => {
          event.preventDefault();
          if (text.value.trim()) this.actions.edit(message, text.value);
        },
        onkeydown: (event) => {
          if (event.key === "Escape") {
            event.stopPropagation();
            this.show(this.#conversation, false);
          } else if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
            event.preventDefault();
            form.requestSubmit();
          }
        },
      },
      text,
      element(
        "div",
        { class: "row" },
        hint,
        element("button", { type: "button", onclick: () => this.show(this.#conversation, false) }, "Cancel"),
        element("button", { class: "primary" }, "Ask again"),
      ),
    );
    article.replaceChildren(form);
    text.focus();
    const showCost = afterPause(async () => {
      hint.textContent = `About ${tokens(await countTokens(text.value))} will be read again; what comes before is kept.`;
    });
    text.addEventListener("input", showCost);
    showCost();
  }
}

/** Call `action` when nothing has happened for a moment; it may fail: it is only a hint. */
function afterPause(action) {
  let timer = 0;
  return () => {
    clearTimeout(timer);
    timer = setTimeout(() => action().catch(() => {}), 250);
  };
}

async function copy(text) {
  await navigator.clipboard.writeText(text);
  announce("Copied");
}

/** How an answer ended, if not by itself. */
function outcome({ finish, error }, retry) {
  if (finish === "stopped") return [element("p", { class: "note" }, "Stopped.")];
  if (finish === "length") return [element("p", { class: "note" }, "Ended at the maximum number of tokens.")];
  if (finish !== "failed") return [];
  // Conversations from a file come without errors.
  const { message = "There was no answer.", retryAt = 0 } = error ?? {};
  return [element("div", { class: "failure" }, element("p", {}, message), retryButton(retryAt, retry))];
}

/** A button that waits as long as the server asked. */
function retryButton(retryAt, retry) {
  const button = element("button", { type: "button", onclick: retry }, icon("retry"), "Retry");
  const label = button.lastChild;
  const tick = () => {
    const seconds = Math.ceil((retryAt - Date.now()) / 1000);
    button.disabled = seconds > 0;
    label.textContent = seconds > 0 ? `Retry in ${seconds} s` : "Retry";
    if (seconds > 0) setTimeout(tick, 250);
  };
  tick();
  return button;
}

/** Speed, and where the states after the prompt came from, as a bar and in words. */
function cost({ tokens: number, seconds, wait, cached, replayed, computed }) {
  const total = Math.max(cached + computed, 1);
  // From the right end, none too thin to be seen.
  const width = (part) => part && Math.max((100 * part) / total, 3);
  const bar = svg(
    "svg",
    { class: "bar", viewBox: "0 0 100 6", preserveAspectRatio: "none", "aria-hidden": "true" },
    svg("rect", { class: "cached", width: 100, height: 6 }),
    svg("rect", { class: "replayed", x: 100 - width(computed) - width(replayed), width: width(replayed), height: 6 }),
    svg("rect", { class: "computed", x: 100 - width(computed), width: width(computed), height: 6 }),
  );
  const speed = number > 1 && seconds > 0 ? `${threeDigits((number - 1) / seconds)} tokens/s` : tokens(number);
  const words = `${count(cached)} cached · ${count(replayed)} replayed · ${count(computed)} computed`;
  return element(
    "span",
    { class: "cost", title: `${tokens(number)} after ${duration(wait)}; the prompt had ${tokens(cached + computed)}` },
    element("span", {}, speed),
    bar,
    element("span", {}, words),
  );
}
