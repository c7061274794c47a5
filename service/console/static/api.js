// The server's public API. The key lives in this tab's session storage and in the Authorization header, nowhere else.
export const BASE = new URL("../", import.meta.url);
const STORED = "smn.key";

export class Failure extends Error {
  constructor(status, code, message) {
    super(message);
    this.status = status;
    this.code = code;
  }
}

export const key = () => sessionStorage.getItem(STORED) || "";
export function setKey(text) {
  if (text) sessionStorage.setItem(STORED, text);
  else sessionStorage.removeItem(STORED);
}

export async function call(path, { method = "GET", body, headers = {}, signal } = {}) {
  const sent = new Headers(headers);
  if (key()) sent.set("Authorization", `Bearer ${key()}`);
  let answer;
  try {
    answer = await fetch(new URL(path, BASE), { method, body, headers: sent, signal, credentials: "omit" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Failure(0, "gone", "The server does not answer. It may have stopped, or the network is gone.");
  }
  if (answer.ok) return answer;
  let said = { code: "unknown", message: `The server answered ${answer.status}.` };
  try {
    said = (await answer.json()).error;
  } catch {
    // not the server's own words: something in front of it answered
  }
  throw new Failure(answer.status, said.code, said.message);
}

export const get = async (path, options) => (await call(path, options)).json();
export const send = async (method, path, body, options = {}) =>
  call(path, { ...options, method, body: JSON.stringify(body), headers: { "Content-Type": "application/json" } });

// Every item of a list that comes in pages.
export async function all(path, most = 20000) {
  const found = [];
  let after = "";
  do {
    const page = await get(`${path}?limit=1000&after=${encodeURIComponent(after)}`);
    found.push(...page.data);
    after = page.next;
  } while (after && found.length < most);
  return found;
}

let known = null;
export async function info() {
  known = known || (await get("info"));
  return known;
}
export const forget = () => {
  known = null;
};

// Runs calls a few at a time, the newest wish first, since that is what is in sight.
export function queue(atOnce) {
  const waiting = [];
  let running = 0;
  const next = () => {
    while (running < atOnce && waiting.length) {
      const job = waiting.pop();
      if (job.wanted && !job.wanted()) {
        job.give(null);
        continue;
      }
      running += 1;
      job.work().then(job.give, job.fail).finally(() => {
        running -= 1;
        next();
      });
    }
  };
  return (work, wanted) =>
    new Promise((give, fail) => {
      waiting.push({ work, wanted, give, fail });
      next();
    });
}
