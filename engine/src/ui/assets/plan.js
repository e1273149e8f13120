// A plan as a tree. Operators that ask a model show for each call what was expected beside what happened.

import { count, duration, element, percent } from "./elements.js";

/** Shows a plan in a panel; null where there is none. */
export function showPlan(panel, plan, why = "This query has no plan: it was not planned, or its plan was too long to be kept.") {
  panel.replaceChildren(plan ? element("ul.plan", {}, operator(plan)) : element("p.muted.empty", {}, why));
}

/** Returns the calls of a plan, top first. */
export function callsOf(plan) {
  const own = [...(plan.calls ?? []), ...(plan.aggregates ?? [])];
  return [...own, ...(plan.children ?? []).flatMap(callsOf)];
}

function operator(plan) {
  const isLlm = Boolean(plan.calls || plan.aggregates);
  const kind = plan.kind ?? plan.join_type?.toLowerCase();
  const head = element("div.bar", {}, element("b", {}, plan.operator), kind ? element("span.chip", {}, kind) : null,
    ...(plan.rewrites ?? []).map((name) => element("span.chip.good", { title: "a rewrite that was applied" }, name)));
  const detail = plan.detail?.replace(`${plan.operator}: `, "").replace(plan.operator, "");
  const box = element(isLlm ? "div.operator.llm" : "div.operator", {}, head,
    detail ? element("p.detail", { title: detail }, detail) : null,
    plan.filter ? element("p.detail", {}, `keeps ${plan.filter}`) : null,
    ...callsOf({ calls: plan.calls, aggregates: plan.aggregates }).map(call),
    orderOf(plan.order));
  const children = (plan.children ?? []).map(operator);
  return element("li", {}, box, children.length > 0 ? element("ul", {}, ...children) : null);
}

function orderOf(order) {
  return order ? element("p.detail", {}, `asked in the order ${order.last.join(", ")}, changed ${order.changes} times`) : null;
}

function call(call) {
  const { estimate, actual } = call;
  const notes = [
    ...(call.rewrites_refused ?? []).map((text) => ["refused", text]),
    ...(estimate?.refused ?? []).map((text) => ["refused", text]),
    ...(estimate?.warnings ?? []).map((text) => ["warning", text]),
  ];
  const order = estimate?.field_order?.length > 1
    ? element("p.detail", {}, `fields in the order ${estimate.field_order.join(", ")} (${estimate.strategy})`) : null;
  return element("div.call", {},
    element("p", {}, element("code", {}, call.call), element("span.muted", {}, ` ${call.model}`)),
    estimate || actual ? numbers(estimate, actual) : element("p.muted", {}, "Not estimated: it depends on other answers."),
    order,
    ...notes.map(([kind, text]) => element("p.detail", {}, element(`span.chip.${kind}`, {}, kind), ` ${text}`)));
}

// What is compared: name, value of the estimate, value of what happened, how it is shown.
const COMPARED = [
  ["groups", (e) => e.groups, () => undefined, count],
  ["rows", (e) => e.rows ?? e.inputs, (a) => a.rows, count],
  ["calls", (e) => e.calls ?? e.distinct, (a) => a.calls, count],
  ["from a cache", () => undefined, (a) => a.cache_hits || undefined, count],
  ["prompt tokens", (e) => e.prompt_tokens, (a) => a.prompt_tokens, count],
  ["computed", (e) => e.computed_tokens, (a) => a.computed_tokens, count],
  ["shared", (e) => e.prefix_hit, (a) => share(a.cached_tokens, a.prompt_tokens), percent],
  ["answer tokens", (e) => e.output_tokens, (a) => a.output_tokens, count],
  ["time", (e) => e.seconds, (a) => a.seconds, duration],
];

function numbers(estimate, actual) {
  const shown = COMPARED.map(([name, expected, happened, show]) => {
    const [e, a] = [estimate ? expected(estimate) : undefined, actual ? happened(actual) : undefined];
    return { name, e: e ?? undefined, a: a ?? undefined, show };
  }).filter(({ e, a }) => e !== undefined || a !== undefined);
  const value = (number, show) => element("td", {}, number === undefined ? "–" : show(number));
  const line = (name, cells) => element("tr", {}, element("th", { scope: "row" }, name), ...cells);
  const head = line("", shown.map(({ name }) => element("th", { scope: "col" }, name)));
  const lines = [];
  if (estimate) {
    const about = estimate.exact ? "expected" : "expected, from a sample";
    lines.push(line(about, shown.map(({ e, show }) => value(e, show))));
  }
  if (actual) {
    lines.push(line("happened", shown.map(({ a, show }) => value(a, show))));
  }
  if (estimate && actual) {
    // Of shares the difference is plain to see.
    lines.push(line("off by", shown.map(({ e, a, show }) => off(show === percent ? undefined : e, a))));
  }
  const failed = Object.entries(actual?.errors ?? {}).map(([reason, rows]) => `${count(rows)} ${reason}`).join(", ");
  return element("div", {}, element("div.scroll", {}, element("table.numbers", {}, element("thead", {}, head), element("tbody", {}, ...lines))),
    failed ? element("p.error", {}, `failed rows: ${failed}`) : null);
}

function off(expected, happened) {
  if (expected === undefined || !happened) {
    return element("td", {}, "–");
  }
  const by = (expected / happened - 1) * 100;
  const words = `${by < 0 ? "−" : "+"}${Math.abs(by).toFixed(Math.abs(by) < 10 ? 1 : 0)} %`;
  return element(Math.abs(by) > 50 ? "td.far" : "td", {}, words);
}

function share(part, whole) {
  return whole > 0 ? part / whole : undefined;
}
