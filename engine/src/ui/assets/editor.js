// The editor: runs statements, shows their rows as they come, and cancels.

import { byId, count, counted, duration, element, percent } from "./elements.js";
import { run } from "./server.js";

const EXAMPLE = `SELECT body, ai_sentiment(body) AS feeling, ai_filter('Is it about food?', body) AS food
FROM (VALUES ('The soup was cold and the waiter rude.'),
             ('A wonderful film, see it twice.'),
             ('The best bread in town!')) AS mails(body)`;
const KEPT = "refrain.sql";

/** Connects the editor. `hears.started` is told that rows will come, `hears.query` of the query that runs. */
export function editor(hears) {
  const sql = byId("sql");
  sql.value = sessionStorage.getItem(KEPT) ?? EXAMPLE;
  let running = null;

  async function start() {
    if (running) {
      return;
    }
    sessionStorage.setItem(KEPT, sql.value);
    running = new AbortController();
    busy(true);
    hears.started();
    const table = new Rows(byId("panel-rows"));
    const body = { sql: statements(), rows: Number(byId("rows-max").value), estimates: byId("estimates").checked };
    const began = performance.now();
    const tick = setInterval(() => tell(table.query ? progressWords(table.query) : waiting(began)), 100);
    let last = ["the server has ended the connection", true];
    try {
      await run(body, (line) => {
        table.take(line);
        if (line.query) {
          hears.query(line.query);
          showProgress(line.query);
        } else if (line.end) {
          last = [endWords(line.end, table.query, began), false];
        } else if (line.error !== undefined) {
          last = line.cancelled ? ["cancelled", false] : [`error: ${line.error}`, true];
        }
      }, running.signal);
    } catch (error) {
      last = error.name === "AbortError" ? ["cancelled", false] : [`error: ${error.message}`, true];
      if (error.status === 401) {
        hears.signedOut();
      }
    }
    clearInterval(tick);
    running = null;
    busy(false);
    tell(...last);
    hears.ended();
  }

  /** The selection if there is one, else all. */
  function statements() {
    const selected = sql.value.slice(sql.selectionStart, sql.selectionEnd);
    return selected.trim() ? selected : sql.value;
  }

  byId("run").addEventListener("click", start);
  byId("cancel").addEventListener("click", () => running?.abort());
  sql.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
      event.preventDefault();
      start();
    }
  });
  return {
    statements,
    /** Puts a statement into the editor. */
    open(text) {
      sql.value = text;
      sql.focus();
    },
  };
}

/** Says something below the editor. */
export function tell(text, isError = false) {
  byId("status").textContent = text;
  byId("status").classList.toggle("error", isError);
}

function busy(isRunning) {
  byId("run").disabled = byId("explain").disabled = isRunning;
  byId("cancel").disabled = !isRunning;
  byId("progress").hidden = !isRunning;
  byId("progress").removeAttribute("value");
}

function showProgress(query) {
  if (query.progress !== null && query.state === "running") {
    byId("progress").value = query.progress;
  }
}

function waiting(began) {
  return `planning · ${duration((performance.now() - began) / 1000)}`;
}

/** Says how far a query is: `42 % · 12 of 30 calls · 61 % shared · 3.2 s left`. */
export function progressWords(query) {
  const words = [];
  if (query.spent) {
    if (query.progress !== null) {
      words.push(percent(query.progress));
    }
    words.push(`${count(query.spent.calls_done)} of ${counted(query.spent.calls, "call")}`);
    if (query.prefix_hit !== null) {
      words.push(`${percent(query.prefix_hit)} shared`);
    }
  }
  words.push(duration(query.elapsed_s));
  if (query.eta_s !== null) {
    words.push(`about ${duration(query.eta_s)} left`);
  }
  return words.join(" · ");
}

function endWords(end, query, began) {
  const words = [];
  if (end.rows === undefined) {
    words.push(end.changed ? `${counted(end.changed, "row")} changed` : "done");
  } else {
    words.push(end.shown < end.rows ? `${count(end.shown)} of ${counted(end.rows, "row")} shown` : counted(end.rows, "row"));
  }
  if (query?.spent) {
    words.push(counted(query.spent.calls_done, "call"), `${count(query.spent.prompt_tokens)} prompt tokens`);
    if (query.prefix_hit !== null) {
      words.push(`${percent(query.prefix_hit)} of them shared`);
    }
  }
  words.push(duration(query?.elapsed_s ?? (performance.now() - began) / 1000));
  return end.notice ? `${words.join(" · ")} · ${end.notice}` : words.join(" · ");
}

/** The rows of the last statement that returns any. */
class Rows {
  constructor(panel) {
    this.panel = panel;
    this.panel.replaceChildren();
    this.query = null;
  }

  take(line) {
    if (line.columns) {
      this.isNumber = line.columns.map((column) => column.is_number);
      const head = line.columns.map((column, at) =>
        element("th", { title: column.type, className: this.isNumber[at] ? "number" : "", scope: "col" }, column.name));
      this.body = element("tbody");
      const table = element("table.rows", {}, element("thead", {}, element("tr", {}, ...head)), this.body);
      this.panel.replaceChildren(element("div.scroll", {}, table));
    } else if (line.rows) {
      this.body.append(...line.rows.map((row) => element("tr", {}, ...row.map((text, at) => this.cell(text, at)))));
    } else if (line.query) {
      this.query = line.query;
    }
  }

  cell(text, at) {
    if (text === null) {
      return element("td.null", {}, "NULL");
    }
    return element(this.isNumber[at] ? "td.number" : "td", { title: text.length > 80 ? text : "" }, text);
  }
}
