// What tokens cost: two prices that the reader gives, in dollars for a million tokens, kept in this browser. Models here have none.

import { byId } from "./elements.js";

const KEPT = "refrain.prices";
const MILLION = 1e6;
const DOLLARS = new Intl.NumberFormat("en", { style: "currency", currency: "USD", maximumSignificantDigits: 3 });

const fields = [byId("price-prompt"), byId("price-answer")];
const kept = JSON.parse(localStorage.getItem(KEPT) ?? "[]");
fields.forEach((field, at) => {
  field.value = kept[at] ?? "";
  field.addEventListener("input", () => localStorage.setItem(KEPT, JSON.stringify(fields.map(({ value }) => value))));
});

/** Returns what tokens of prompts and of answers cost, in dollars; null while no price is given. Found tokens cost as computed ones. */
export function cost(promptTokens, answerTokens) {
  const [prompt, answer] = fields.map(({ valueAsNumber }) => valueAsNumber);
  if (!(prompt > 0 || answer > 0)) {
    return null;
  }
  return (promptTokens * (prompt || 0) + answerTokens * (answer || 0)) / MILLION;
}

/** 0.00123456 → `$0.00123`. */
export const money = (dollars) => DOLLARS.format(dollars);
