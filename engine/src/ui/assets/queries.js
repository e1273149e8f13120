// The queries of the user: those that run, with how far they are, and those that ended lately.

import { byId, count, counted, duration, element, percent } from "./elements.js";
import { cost, money } from "./prices.js";

const entries = new Map();

/** Shows queries, newest first. `selected` is the number of one; `hears` is told what is selected, to be edited or to be cancelled. */
export function showQueries(queries, selected, hears) {
  const list = byId("queries");
  if (queries.length === 0) {
    list.replaceChildren(element("li.muted.empty", {}, "No queries yet."));
    entries.clear();
    return;
  }
  const kept = new Set(queries.map((query) => query.id));
  for (const [id, entry] of entries) {
    if (!kept.has(id)) {
      entry.item.remove();
      entries.delete(id);
    }
  }
  list.querySelector(".empty")?.remove();
  queries.forEach((query, at) => {
    const entry = entries.get(query.id) ?? newEntry(query, hears);
    update(entry, query, query.id === selected);
    if (list.children[at] !== entry.item) {
      list.insertBefore(entry.item, list.children[at] ?? null);
    }
  });
}

function newEntry(query, hears) {
  const state = element("span.chip");
  const time = element("span.muted");
  const cancel = element("button.small", { type: "button", onclick: () => hears.cancel(query.id) }, "Cancel");
  const edit = element("button.small", { type: "button", title: "Puts the statement into the editor", onclick: () => hears.edit(query) }, "Edit");
  const progress = element("progress", { max: 1 });
  const facts = element("p.muted.facts");
  const sql = element("button.sql", { type: "button", title: query.sql, onclick: () => hears.select(query) }, query.sql);
  const head = element("div.bar", {}, element("b", {}, `#${query.id}`), state, element("span.space"), time, edit, cancel);
  const item = element("li", {}, head, sql, progress, facts);
  item.dataset.id = query.id;
  const entry = { item, state, time, cancel, progress, facts, sql };
  entries.set(query.id, entry);
  return entry;
}

function update(entry, query, isSelected) {
  const isRunning = query.state === "running";
  entry.item.classList.toggle("selected", isSelected);
  entry.sql.setAttribute("aria-pressed", isSelected);
  entry.state.textContent = query.state;
  entry.state.className = `chip ${query.state}`;
  entry.time.textContent = duration(query.elapsed_s);
  entry.cancel.hidden = !isRunning;
  entry.progress.hidden = !isRunning;
  if (query.progress === null) {
    entry.progress.removeAttribute("value");
  } else {
    entry.progress.value = query.progress;
  }
  entry.facts.replaceChildren(...facts(query));
}

function facts(query) {
  const words = [];
  if (query.state === "running" && query.eta_s !== null) {
    words.push(`${percent(query.progress)}, about ${duration(query.eta_s)} left`);
  }
  words.push(counted(query.rows_out, "row"));
  if (query.spent) {
    words.push(counted(query.spent.calls_done, "call"), `${count(query.spent.prompt_tokens)} tok`);
    if (query.prefix_hit !== null) {
      words.push(`${percent(query.prefix_hit)} shared`);
    }
    const dollars = cost(query.spent.prompt_tokens, query.spent.output_tokens);
    if (dollars !== null) {
      words.push(money(dollars));
    }
  }
  if (query.budget_spent !== null) {
    words.push(`${percent(query.budget_spent)} of the budget`);
  }
  const nodes = [words.join(" · ")];
  if (query.spent?.errors) {
    nodes.push(" · ", element("span.error", {}, `${count(query.spent.errors)} failed`));
  }
  return nodes;
}
