// The prompts of a call as a picture: a row of the picture for each prompt in the order of the schedule, tokens from left to right.
// What a prompt finds in the cache has one colour, what is computed for it another.

import { count, counted, drawn, element, percent } from "./elements.js";
import { callsOf } from "./plan.js";

const HEIGHT_MAX = 340;
const ROW_MAX = 22;
const WIDTH = 1000;
// Gaps that let prompts be told apart, where there is room for them.
const GAP = 1;

/** Shows the prompts of all calls of a plan. */
export function showPrompts(panel, plan) {
  const calls = callsOf(plan).filter((call) => call.estimate?.prompts?.root.prompts > 0);
  const empty = element("p.muted.empty", {}, "No prompts are known: the query asks no model, or what it asks depends on other answers.");
  panel.replaceChildren(...(calls.length > 0 ? calls.map(picture) : [empty]));
}

function picture(call) {
  const { root, questions, prompt_tokens: tokens, shared_tokens: shared } = call.estimate.prompts;
  const all = counted(questions, "question") + (call.estimate.exact ? "" : " of a sample");
  const shown = root.prompts < questions ? `the first ${count(root.prompts)} of ${all}` : all;
  const text = element("pre.prompt", { tabIndex: 0 });
  const where = element("p.muted");
  const select = (path) => {
    where.textContent = `${describe(path)}. Select a part of the picture to read it; arrow keys move.`;
    text.replaceChildren(...path.map((node, at) => element(at + 1 < path.length ? "span.muted" : "mark", {}, node.text)));
  };
  return element("section.prompts", {},
    element("p", {}, element("code", {}, call.call)),
    element("p", {}, element("b.hit", {}, `${percent(tokens > 0 ? shared / tokens : 0)} shared`),
      ` · ${shown} · ${count(tokens)} tokens, of which ${count(tokens - shared)} are computed · order: ${call.estimate.strategy}`),
    element("p.legend", {}, element("i.key.found"), "found in the cache", element("i.key.computed"), "computed"),
    drawing(root, select), where, text);
}

function describe(path) {
  const node = path[path.length - 1];
  const start = path.slice(0, -1).reduce((sum, above) => sum + above.tokens, 0);
  const whose = node.prompts > 1 ? `shared by ${count(node.prompts)} prompts` : "one prompt's own";
  return `Tokens ${count(start + 1)} to ${count(start + node.tokens)}: ${whose}`;
}

function drawing(root, select) {
  const height = Math.min(HEIGHT_MAX, root.prompts * ROW_MAX);
  const scale = { x: WIDTH / Math.max(deepest(root), 1), y: height / root.prompts };
  const picture = drawn("svg", { viewBox: `0 0 ${WIDTH} ${height}`, preserveAspectRatio: "none", class: "icicle", tabindex: 0,
    role: "img", "aria-label": "prompts and what they share" });
  picture.style.height = `${height}px`;
  const parts = [];
  place(root, [], 0, 0, scale, parts);
  let selected = null;
  const choose = (part) => {
    selected?.shape.classList.remove("selected");
    selected = part;
    part.shape.classList.add("selected");
    select(part.path);
  };
  parts.forEach((part) => {
    part.shape.addEventListener("click", () => choose(part));
    picture.append(part.shape);
  });
  const ofNode = new Map(parts.map((part) => [part.path[part.path.length - 1], part]));
  picture.addEventListener("keydown", (event) => {
    const next = ofNode.get(neighbour(selected.path, event.key));
    if (next) {
      event.preventDefault();
      choose(next);
    }
  });
  choose(parts[0]);
  return picture;
}

/** Draws a node and what follows it. Nodes without tokens, where prompts differ at once, are not seen. */
function place(node, above, x, row, scale, parts) {
  const path = [...above, node];
  const [width, height] = [node.tokens * scale.x, node.prompts * scale.y];
  const gap = { x: width > 3 ? GAP : 0, y: scale.y > 3 ? GAP : 0 };
  const box = (y, h, kind) => drawn("rect", { class: kind, x, y, width: Math.max(width - gap.x, 0.3), height: Math.max(h - gap.y, 0.3) });
  const title = drawn("title", {}, `${counted(node.tokens, "token")}, ${counted(node.prompts, "prompt")}`);
  const shape = drawn("g", {}, title, box(row * scale.y, scale.y, "computed"));
  if (node.prompts > 1) {
    // The first prompt computes it, the others find it.
    shape.append(box((row + 1) * scale.y, height - scale.y, "found"));
  }
  parts.push({ shape, path });
  let next = row;
  for (const child of node.children) {
    place(child, path, x + width, next, scale, parts);
    next += child.prompts;
  }
}

/** Returns the node that an arrow key leads to. */
function neighbour(path, key) {
  const node = path[path.length - 1];
  const siblings = path[path.length - 2]?.children ?? [];
  const at = siblings.indexOf(node);
  return { ArrowLeft: path[path.length - 2], ArrowRight: node.children[0], ArrowUp: siblings[at - 1], ArrowDown: siblings[at + 1] }[key];
}

function deepest(node) {
  return node.tokens + node.children.reduce((most, child) => Math.max(most, deepest(child)), 0);
}
