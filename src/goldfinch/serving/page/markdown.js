// Markdown as models write it, shown as elements: headings, lists, tables, quotes, code, emphasis, links.
// Everything else, HTML too, stays the text that it is. Nothing is fetched: an image is shown as a link.

import { announce, element, iconButton } from "./dom.js";
import { flow } from "./format.js";

/** Show `text` in `container`. Blocks that have not changed since the last time stay as they are. */
export function renderMarkdown(container, text) {
  const sources = blocks(text);
  sources.forEach((source, index) => {
    const shown = container.children[index];
    if (shown?.markdown === source) return;
    const node = block(source);
    node.markdown = source;
    if (shown) shown.replaceWith(node);
    else container.append(node);
  });
  while (container.children.length > sources.length) container.lastChild.remove();
}

const FENCE = /^ {0,3}(`{3,}|~{3,})\s*([\w+#.-]*)[^`]*$/;
const HEADING = /^ {0,3}(#{1,6})\s+(.*?)\s*#*$/;
const RULE = /^ {0,3}([-*_])( *\1){2,}\s*$/;
const ITEM = /^( *)([-*+]|\d{1,9}[.)])\s+(.*)$/;
const QUOTE = /^ {0,3}> ?/;
const TABLE_LINE = /^ *\|?( *:?-+:? *\|)+ *:?-* *:? *\|? *$/;

/** The text in pieces, each of which is one block. */
function blocks(text) {
  const found = [];
  let lines = [];
  let fence = null;
  const end = () => {
    if (lines.length) found.push(lines.join("\n"));
    lines = [];
  };
  for (const line of text.replaceAll("\r\n", "\n").split("\n")) {
    if (fence) {
      lines.push(line);
      if (line.trim().startsWith(fence) && !line.trim().slice(fence.length).trim()) {
        fence = null;
        end();
      }
      continue;
    }
    const opening = FENCE.exec(line);
    const inList = lines.length > 0 && ITEM.test(lines[0]);
    if (opening && !(inList && line.startsWith("  "))) {
      end();
      fence = opening[1];
      lines.push(line);
    } else if (!line.trim()) {
      if (inList) lines.push("");
      else end();
    } else if (HEADING.test(line) || RULE.test(line)) {
      end();
      found.push(line);
    } else {
      // A list lasts as long as its lines are items or indented, or nothing separates them.
      const continuesList = ITEM.test(line) || line.startsWith("  ") || lines.at(-1) !== "";
      const startsOther = lines.length > 0 && (QUOTE.test(line) !== QUOTE.test(lines[0]) || (ITEM.test(line) && !inList));
      if (inList ? !continuesList : startsOther) end();
      lines.push(line);
    }
  }
  end();
  return found.map((source) => source.trimEnd());
}

function block(source) {
  const lines = source.split("\n");
  const fence = FENCE.exec(lines[0]);
  if (fence) return codeBlock(lines, fence);
  const heading = HEADING.exec(lines[0]);
  // The first level is the title of the conversation.
  if (heading) return element(`h${Math.min(heading[1].length + 1, 6)}`, {}, inline(heading[2]));
  if (RULE.test(source)) return element("hr");
  if (QUOTE.test(lines[0])) return nested("blockquote", lines.map((line) => line.replace(QUOTE, "")).join("\n"));
  if (ITEM.test(lines[0])) return list(lines);
  if (lines.length > 1 && lines[0].includes("|") && TABLE_LINE.test(lines[1])) return table(lines);
  return element("p", {}, inline(flow(source.trimStart())));
}

function nested(tag, text) {
  const node = element(tag);
  renderMarkdown(node, text);
  return node;
}

function codeBlock(lines, [, fence, language]) {
  const isClosed = lines.length > 1 && lines.at(-1).trim().startsWith(fence);
  const code = lines.slice(1, isClosed ? -1 : undefined).join("\n");
  const copy = iconButton("copy", "Copy code", async () => {
    await navigator.clipboard.writeText(code);
    announce("Code copied");
  });
  return element(
    "figure",
    { class: "code" },
    element("figcaption", {}, element("span", {}, language || "code"), copy),
    // Scrolled by keyboard, too.
    element("pre", { tabindex: "0", role: "region", "aria-label": `${language || "code"} block` }, element("code", {}, code)),
  );
}

function list(lines) {
  const [, indent, marker] = ITEM.exec(lines[0]);
  const items = [];
  for (const line of lines) {
    const item = ITEM.exec(line);
    if (item && item[1].length <= indent.length) items.push([item[3]]);
    else items.at(-1).push(line);
  }
  const isOrdered = /\d/.test(marker);
  return element(
    isOrdered ? "ol" : "ul",
    { start: isOrdered && Number.parseInt(marker, 10) !== 1 ? Number.parseInt(marker, 10) : null },
    items.map((item) => {
      if (item.every((line, index) => index === 0 || !line.trim())) return element("li", {}, inline(item[0]));
      const shift = Math.min(...item.slice(1).filter((line) => line.trim()).map((line) => line.search(/\S/)));
      const text = [item[0], ...item.slice(1).map((line) => line.slice(Math.min(shift, line.search(/\S|$/))))];
      return nested("li", text.join("\n"));
    }),
  );
}

function table(lines) {
  const cells = (line) => line.trim().replace(/^\||\|$/g, "").split("|");
  const row = (tag, line) => element("tr", {}, cells(line).map((cell) => element(tag, {}, inline(cell.trim()))));
  return element(
    "div",
    { class: "table", tabindex: "0", role: "region", "aria-label": "table" },
    element(
      "table",
      {},
      element("thead", {}, row("th", lines[0])),
      element("tbody", {}, lines.slice(2).map((line) => row("td", line))),
    ),
  );
}

// Alternatives in the order in which they are tried: code, image or link, bare address, strong, emphasis, struck, break.
const INLINE = new RegExp(
  [
    /(?<ticks>`+)(?<code>.+?)\k<ticks>(?!`)/,
    /!?\[(?<label>[^\]\n]*)\]\((?<target>[^\s()]+(?:\([^\s()]*\)[^\s()]*)?)\)/,
    /(?<bare>https?:\/\/[^\s<>"')\]]*[^\s<>"')\].,;:!?])/,
    /\*\*(?=\S)(?<strong>.+?)(?<=\S)\*\*/,
    /\*(?=\S)(?<star>[^*\n]+?)(?<=\S)\*/,
    /(?<!\w)_(?=\S)(?<line>[^_\n]+?)(?<=\S)_(?!\w)/,
    /~~(?=\S)(?<struck>.+?)(?<=\S)~~/,
    /(?<break> {2,}\n|\\\n)/,
    /\\(?<escaped>[\\`*_{}[\]()#+.!|~>-])/,
  ]
    .map((pattern) => pattern.source)
    .join("|"),
  "gs",
);

/** Nodes of a line of text. */
function inline(text) {
  const nodes = [];
  let end = 0;
  for (const match of text.matchAll(INLINE)) {
    nodes.push(text.slice(end, match.index), inlineNode(match));
    end = match.index + match[0].length;
  }
  nodes.push(text.slice(end));
  return nodes.filter((node) => node !== "");
}

function inlineNode({ 0: source, groups }) {
  if (groups.code !== undefined) return element("code", {}, groups.code);
  if (groups.label !== undefined) return link(groups.target, inline(groups.label), source);
  if (groups.bare !== undefined) return link(groups.bare, [groups.bare], source);
  if (groups.strong !== undefined) return element("strong", {}, inline(groups.strong));
  if (groups.star !== undefined || groups.line !== undefined) return element("em", {}, inline(groups.star ?? groups.line));
  if (groups.struck !== undefined) return element("s", {}, inline(groups.struck));
  if (groups.break !== undefined) return element("br");
  return groups.escaped;
}

function link(target, label, source) {
  if (!/^(https?:\/\/|mailto:)/i.test(target)) return source;
  return element("a", { href: target, target: "_blank", rel: "noopener noreferrer" }, label.length ? label : target);
}
