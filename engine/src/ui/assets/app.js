// The page: signs in, asks once a second how things stand, and shows the query that is selected.

import { editor, tell } from "./editor.js";
import { byId, count, counted, element } from "./elements.js";
import { showPlan } from "./plan.js";
import { samplePlots } from "./plots.js";
import { showPrompts } from "./prompts.js";
import { showQueries } from "./queries.js";
import { ask, isSignedIn, signIn, signOut } from "./server.js";

const INTERVAL_MS = 1000;
const TABS = ["rows", "plan", "prompts", "failed"];

// What the tabs are about: a query by its number, or a statement that is only explained.
let subject = { id: null, sql: null, explained: null };
let tab = "rows";

const edited = editor({
  started() {
    choose({ id: null, sql: null, explained: null });
    openTab("rows");
  },
  query(query) {
    if (subject.id !== query.id) {
      choose({ id: query.id, sql: query.sql, explained: null });
    }
  },
  ended() {
    poll();
    refresh();
  },
  signedOut: enter,
});

function choose(next) {
  subject = next;
  byId("subject").textContent = subject.id === null ? "" : `query #${subject.id}`;
  for (const name of ["plan", "prompts", "failed"]) {
    byId(`panel-${name}`).replaceChildren();
  }
}

function openTab(name) {
  tab = name;
  for (const each of TABS) {
    byId(`tab-${each}`).setAttribute("aria-selected", each === name);
    byId(`tab-${each}`).tabIndex = each === name ? 0 : -1;
    byId(`panel-${each}`).hidden = each !== name;
  }
  refresh();
}

/** Fetches what the open tab shows. */
async function refresh() {
  const about = subject;
  const panel = byId(`panel-${tab}`);
  try {
    if (tab === "prompts" && about.sql !== null) {
      if (about.explained === null) {
        panel.replaceChildren(element("p.muted.empty", {}, "Planning the prompts; no model is asked …"));
        about.explained = await ask("plan", { sql: about.sql });
      }
      if (about === subject) {
        showPrompts(panel, about.explained);
      }
    } else if (about.id !== null && tab !== "rows") {
      const full = await ask(`queries/${about.id}`);
      if (about === subject) {
        (tab === "plan" ? showPlan : showFailed)(panel, tab === "plan" ? full.plan : full);
      }
    } else if (tab === "plan" && about.explained !== null) {
      showPlan(panel, about.explained);
    } else if (tab !== "rows") {
      panel.replaceChildren(element("p.muted.empty", {}, "Run or explain a statement, or select a query."));
    }
  } catch (error) {
    if (about === subject) {
      panel.replaceChildren(element("p.error.empty", {}, `error: ${error.message}`));
    }
  }
}

function showFailed(panel, { errors, errors_kept: kept }) {
  const row = (error) => element("details", {},
    element("summary", {}, element("span.chip.refused", {}, error.reason), ` ${error.message} `,
      element("span.muted", {}, `${error.function}, ${counted(error.rows, "row")}, ${counted(error.attempts, "attempt")}`)),
    ...[["inputs", error.inputs], ["prompt", error.prompt], ["the model wrote", error.output]]
      .filter(([, text]) => text !== null)
      .flatMap(([name, text]) => [element("p.muted", {}, name), element("pre.prompt", {}, text)]));
  // What was opened stays open.
  const opened = [...panel.querySelectorAll("details")].map((details) => details.open);
  const shown = errors.map(row);
  shown.forEach((details, at) => { details.open = opened[at] ?? false; });
  const more = errors.length < kept ? [element("p.muted", {}, `${count(kept - errors.length)} more are in ai_errors().`)] : [];
  panel.replaceChildren(...(errors.length > 0 ? [...shown, ...more] : [element("p.muted.empty", {}, "No row has failed.")]));
}

async function explain() {
  const sql = edited.statements();
  tell("planning; no model is asked …");
  try {
    const explained = await ask("plan", { sql });
    choose({ id: null, sql, explained });
    openTab("plan");
    tell("explained; no model was asked");
  } catch (error) {
    tell(`error: ${error.message}`, true);
  }
}

async function poll() {
  if (!isSignedIn()) {
    return;
  }
  try {
    const state = await ask("state");
    showServer(state);
    samplePlots(state);
    showQueries(state.queries, subject.id, {
      select(query) {
        choose({ id: query.id, sql: query.sql, explained: null });
        openTab(tab === "rows" ? "plan" : tab);
        poll();
      },
      edit: (query) => edited.open(query.sql),
      async cancel(id) {
        await ask(`queries/${id}/cancel`, {}).catch((error) => tell(`error: ${error.message}`, true));
        poll();
      },
    });
    const shown = state.queries.find((query) => query.id === subject.id);
    byId("tab-failed").textContent = shown?.spent?.errors ? `Failed rows (${count(shown.spent.errors)})` : "Failed rows";
    if (shown?.state === "running" && tab !== "prompts") {
      refresh();
    }
  } catch (error) {
    if (error.status === 401) {
      enter();
    } else {
      byId("server").textContent = "the server does not answer";
    }
  }
}

function showServer({ server, loading }) {
  const words = [`${count(server.running)} running`, `${count(server.waiting)} waiting`, counted(server.sessions, "session")];
  loading.forEach(({ name, bytes, bytes_total: total }) =>
    words.push(`loading ${name}${total > 0 ? ` ${Math.round((bytes / total) * 100)} %` : ""}`));
  if (server.is_draining) {
    words.push("stopping");
  }
  byId("server").textContent = words.join(" · ");
}

/** Opens a session, and asks who it is for if the server wants to know. */
async function enter() {
  signOut();
  try {
    entered(await signIn());
  } catch (error) {
    if (error.status === 401) {
      byId("login").showModal();
    } else {
      tell(`error: ${error.message}`, true);
    }
  }
}

function entered({ user, model }) {
  byId("login").close();
  byId("model").textContent = model;
  byId("sign-out").hidden = user === "anonymous";
  byId("sign-out").title = user;
  sessionStorage.setItem("refrain.user", JSON.stringify({ user, model }));
  poll();
}

byId("login-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  try {
    entered(await signIn(byId("login-user").value, byId("login-secret").value));
    byId("login-secret").value = byId("login-status").textContent = "";
  } catch (error) {
    byId("login-status").textContent = error.message;
  }
});
byId("login").addEventListener("cancel", (event) => event.preventDefault());
byId("sign-out").addEventListener("click", () => {
  signOut();
  location.reload();
});
byId("explain").addEventListener("click", explain);
TABS.forEach((name, at) => {
  byId(`tab-${name}`).addEventListener("click", () => openTab(name));
  byId(`tab-${name}`).addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (step) {
      const next = TABS[(at + step + TABS.length) % TABS.length];
      openTab(next);
      byId(`tab-${next}`).focus();
    }
  });
});

if (isSignedIn()) {
  entered(JSON.parse(sessionStorage.getItem("refrain.user") ?? "{}"));
} else {
  enter();
}
openTab("rows");
setInterval(poll, INTERVAL_MS);
