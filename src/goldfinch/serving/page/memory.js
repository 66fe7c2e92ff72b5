// What a text takes, part by part, next to what a Transformer's cache would take.

import { element, svg } from "./dom.js";
import { bytes, threeDigits } from "./format.js";

/** A small picture with words. `model`: the server's facts about it. */
export function memoryPicture(context, model) {
  const state = model.state_bytes;
  const latents = model.bytes_per_token * context.num_tokens;
  const transformer = context.transformer_bytes;
  const largest = Math.max(transformer, state + latents);
  return element(
    "div",
    { class: "memory" },
    row("State", state, [["state", state]], largest),
    row("Latents", latents, [["latents", latents]], largest),
    row("A Transformer's cache", transformer, [["transformer", transformer]], largest),
    element("p", { class: "note" }, comparison(state + latents, transformer)),
  );
}

/** "12.4 MB, 756 times less than a Transformer of this size (9.4 GB)" */
export function comparison(ours, transformer) {
  const ratio = transformer / ours;
  const words = ratio >= 1 ? `${threeDigits(ratio)} times less than` : `${threeDigits(1 / ratio)} times more than`;
  return `${bytes(ours)}: ${words} the cache of a Transformer of this size (${bytes(transformer)})`;
}

function row(label, number, parts, largest) {
  return element(
    "div",
    { class: "memory-row" },
    element("span", {}, label),
    element("span", { class: "number" }, bytes(number)),
    svg(
      "svg",
      { class: "bar", viewBox: "0 0 100 6", preserveAspectRatio: "none", "aria-hidden": "true" },
      svg("rect", { class: "track", width: 100, height: 6 }),
      // Never too thin to be seen.
      parts.map(([name, part]) => svg("rect", { class: name, width: Math.max((100 * part) / largest, 0.6), height: 6 })),
    ),
  );
}
