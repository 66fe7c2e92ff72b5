// Files on their way into the server: checked, read, and watched while they are.

import { contexts } from "./api.js";
import { announce, byId, element } from "./dom.js";
import { bytes, count, duration } from "./format.js";
import { comparison } from "./memory.js";

/**
 * Read files: texts become documents of one context, each context file (.gfc) one of its own.
 * `onContext(context)` is called for each that is ready, `onError(error)` for what went wrong. Resolves when all have
 * been read, or have failed.
 */
export async function readFiles(files, { onContext, onError }) {
  const texts = [];
  const readings = [];
  for (const file of files) {
    if (file.name.endsWith(".gfc")) readings.push(read([file], onContext, onError));
    else if (await isText(file)) texts.push(file);
    else onError(new Error(`${file.name} is not a text file (UTF-8), so it cannot be read.`));
  }
  if (texts.length) readings.push(read(texts, onContext, onError));
  await Promise.all(readings);
}

/** Whether the beginning of a file is UTF-8; false for folders, too. */
async function isText(file) {
  try {
    const head = new Uint8Array(await file.slice(0, 1 << 16).arrayBuffer());
    new TextDecoder("utf-8", { fatal: true }).decode(head, { stream: true });
    return !head.includes(0);
  } catch {
    return false;
  }
}

async function read(files, onContext, onError) {
  const name = files.length === 1 ? files[0].name.replace(/\.(gfc|txt|md)$/, "") : `${files[0].name} and ${files.length - 1} more`;
  const controller = new AbortController();
  const card = new Card(name, () => controller.abort());
  byId("reading").append(card.node);
  announce(`Reading ${name}`);
  try {
    for await (const event of contexts.upload(files, files[0].name.endsWith(".gfc") ? "" : name, controller.signal)) {
      if (event.object === "context") {
        announce(`${event.name} is ready`);
        onContext(event);
      } else card.show(event);
    }
  } catch (error) {
    if (error.name !== "AbortError") onError(error);
  }
  card.node.remove();
}

/** How far a text has been read. */
class Card {
  constructor(name, cancel) {
    this.bar = element("progress", { max: "1", "aria-label": `Reading ${name}` });
    this.numbers = element("p", { class: "numbers" }, "Sending");
    this.sizes = element("p", { class: "note" });
    this.node = element(
      "section",
      { class: "card", "aria-label": `Reading ${name}` },
      element(
        "div",
        { class: "heading-row" },
        element("h2", {}, `Reading ${name}`),
        element("button", { type: "button", onclick: cancel }, "Cancel"),
      ),
      this.bar,
      this.numbers,
      this.sizes,
    );
  }

  show({ tokens_read, tokens_total, bytes: size, transformer_bytes, seconds_left }) {
    this.bar.value = tokens_read / Math.max(tokens_total, 1);
    const left = Number.isFinite(seconds_left) ? ` · ${duration(seconds_left)} left` : "";
    this.numbers.textContent = `${count(tokens_read)} of ${count(tokens_total)} tokens${left}`;
    this.sizes.textContent = size && transformer_bytes ? comparison(size, transformer_bytes) : size ? bytes(size) : "";
  }
}
