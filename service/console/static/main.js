// The shell: hash routes, the key, what the server is, and words for what goes wrong.
import { Failure, forget, info, key, setKey } from "./api.js";
import { h, newId, show } from "./dom.js";
import { forgetReferences, head, notice } from "./parts.js";
import * as masks from "./masks.js";

const PAGES = {
  masks: () => masks,
  cascades: () => masks,
  try: () => import("./try.js"),
  explore: () => import("./explore.js"),
  ask: () => import("./ask.js"),
  live: () => import("./live.js"),
};
const main = document.getElementById("main");
let leave = null;
let visit = 0;
let before = "#/masks";

async function route({ focus = true } = {}) {
  const mine = ++visit;
  if (leave) leave();
  leave = null;
  const [name, ...rest] = location.hash.replace(/^#\/?/, "").split("/");
  const page = name || "masks";
  for (const link of document.querySelectorAll(".top nav a, .top .key")) {
    const here = link.getAttribute("href") === `#/${page === "cascades" ? "masks" : page}`;
    if (here) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  if (page === "key") {
    askForKey("The key is kept in this tab alone, until you close it.");
  } else if (!Object.hasOwn(PAGES, page)) {
    show(main, head("No such page"), h("p", {}, h("a", { href: "#/masks" }, "Go to the masks")));
  } else {
    before = location.hash || "#/masks";
    try {
      const argument = rest.length ? decodeURIComponent(rest.join("/")) : "";
      await say();
      const shown = await (await PAGES[page]()).show(main, argument, page, { failed });
      if (mine === visit) leave = shown;
      else if (shown) shown();
    } catch (error) {
      if (mine === visit) failed(error);
    }
  }
  document.querySelector(".foot").hidden = false; // not before: what fills the page would push it down
  if (focus) {
    main.focus({ preventScroll: true });
    scrollTo(0, 0);
  }
}

async function say() {
  const found = await info();
  document.getElementById("served").textContent =
    `${found.model} on ${found.device}, ${found.dimensions} dimensions`;
  document.querySelector(".top .key").textContent = key() ? "Key: set" : "Key";
}

function failed(error) {
  if (!(error instanceof Failure)) {
    show(main, head("Something went wrong"), notice(String(error.message || error)), again());
    throw error;
  }
  if (error.status === 401) {
    const why = key() ? "The server does not know this key." : "This server asks for a key.";
    askForKey(why, Boolean(key()));
  } else if (error.status === 0 || error.status === 503) {
    show(main, head("The server is away"), notice(error.message), again());
  } else {
    show(main, head(error.status === 404 ? "Not here" : "That did not work"), notice(error.message), again());
  }
}

function again() {
  return h("p", {}, h("button", { type: "button", onclick: () => route() }, "Try again"));
}

function askForKey(why, wrong = false) {
  const id = newId();
  const input = h("input", { id, type: "password", autocomplete: "off", required: true });
  const done = (text) => {
    setKey(text);
    forget();
    forgetReferences();
    if (location.hash === before) route();
    else location.hash = before;
  };
  const form = h("form", { class: "panel narrow", onsubmit: (event) => {
    event.preventDefault();
    done(input.value.trim());
  } },
  h("div", { class: "field" }, h("label", { for: id }, "Key"), input),
  h("div", { class: "row" },
    h("button", { type: "submit", class: "main" }, "Use this key"),
    key() ? h("button", { type: "button", class: "quiet", onclick: () => done("") }, "Forget the key") : null));
  show(main, head("Key", "Whoever runs this server gives you one: a key to read, or one that may change masks too."),
    notice(why, wrong ? "bad" : "plain"), form);
  input.focus();
}

addEventListener("hashchange", () => route());
document.querySelector(".skip").addEventListener("click", (event) => {
  event.preventDefault(); // the hash is the route
  main.focus();
});
route({ focus: false });
