// What the page asks of the server. Requests show the token of a session, which is kept for this tab alone.

const TOKEN = "refrain.token";
const JSON_TYPE = { "content-type": "application/json" };

/** The server has refused; `status` is that of HTTP. */
export class Refusal extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

/** Opens a session. Without a secret that succeeds where the server asks nobody who they are. A secret without a user is a token. */
export async function signIn(user = "", secret = "") {
  const headers = { ...JSON_TYPE };
  if (secret) {
    headers.authorization = user ? `Basic ${base64(`${user}:${secret}`)}` : `Bearer ${secret}`;
  }
  const answer = await read(await fetch("api/login", { method: "POST", headers, body: "{}" }));
  sessionStorage.setItem(TOKEN, answer.token);
  return answer;
}

/** Forgets the session. */
export function signOut() {
  sessionStorage.removeItem(TOKEN);
}

/** Whether there is a session, as far as the page knows. */
export function isSignedIn() {
  return sessionStorage.getItem(TOKEN) !== null;
}

/** Asks for `path`, with a body if there is one. */
export async function ask(path, body, signal) {
  return read(await send(path, body, signal));
}

/** Runs statements and hands each line of the answer to `take`. Aborting cancels what runs. */
export async function run(body, take, signal) {
  const response = await send("run", body, signal);
  if (!response.ok) {
    await read(response);
  }
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) {
      return;
    }
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    lines.forEach((line) => take(JSON.parse(line)));
  }
}

function send(path, body, signal) {
  const headers = { authorization: `Bearer ${sessionStorage.getItem(TOKEN)}` };
  if (body === undefined) {
    return fetch(`api/${path}`, { headers, signal });
  }
  return fetch(`api/${path}`, { method: "POST", headers: { ...headers, ...JSON_TYPE }, body: JSON.stringify(body), signal });
}

async function read(response) {
  const answer = await response.json().catch(() => ({}));
  if (!response.ok) {
    throw new Refusal(response.status, answer.error ?? `the server answers ${response.status}`);
  }
  return answer;
}

function base64(text) {
  return btoa(String.fromCharCode(...new TextEncoder().encode(text)));
}
