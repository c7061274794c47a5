// Ask me: thirty questions on which two spaces disagree, answered without knowing which space is which.
import { Failure, get, send } from "./api.js";
import { h, show as fill } from "./dom.js";
import { rank, ranksOf, twoMaps } from "./maps.js";
import { dropPlace, head, notice, progress, references, spaceChooser, UNTOUCHED } from "./parts.js";
import { addFiles, dropped, galleryPictures, image, sample } from "./pictures.js";

const QUESTIONS = 30;
const MOST = 300;
const NEIGHBOURS = 50;
const CLOSE = 8;
const chosen = { a: UNTOUCHED, b: null };

export async function show(main, argument, _, { failed }) {
  const [names, gallery] = await Promise.all([references(), galleryPictures()]);
  chosen.b = argument || chosen.b || names.masks[0] || UNTOUCHED;
  let stopped = false;
  let keys = null;
  const said = h("div", {});
  const out = h("div", {});
  const pictures = () => (dropped.length ? [...dropped] : gallery);
  const counted = h("p", { class: "hint" });
  const button = h("button", { type: "button", class: "main", onclick: begin }, "Begin");
  const setting = h("div", { class: "panel" },
    gallery.length ? null : dropPlace("Drop pictures here, or choose some", (files) => {
      addFiles(files);
      ready();
    }),
    h("div", { class: "tools" },
      spaceChooser("One space", chosen.a, names, (value) => { chosen.a = value; }),
      spaceChooser("and another", chosen.b, names, (value) => { chosen.b = value; }), button), counted);
  fill(main,
    head("Ask me", "Thirty short questions find out which of two spaces sees your pictures as you do. You will not know which is which."),
    said, setting, out);
  ready();

  function ready() {
    const n = pictures().length;
    button.disabled = n < 10;
    counted.textContent = n < 10 ? `It takes ten pictures at least; there are ${n}.` : `It asks about ${Math.min(n, MOST)} pictures.`;
  }

  async function begin() {
    if (chosen.a === chosen.b) {
      fill(said, notice("Choose two different spaces."));
      return;
    }
    const bar = progress("Embedding");
    fill(said, bar.element);
    button.disabled = true;
    try {
      const found = await twoMaps(sample(pictures(), MOST), chosen.a, chosen.b, (which) => ({
        neighbours: NEIGHBOURS, clusters: 1, stopped: () => stopped,
        told: (done, of) => bar.set(which === "first" ? done : of + done, 2 * of),
      }));
      if (!found || stopped) return;
      const questions = ask(found);
      fill(said);
      if (!questions.length) {
        fill(said, notice("The two spaces agree about these pictures: there is nothing to ask.", "plain"));
        return;
      }
      setting.hidden = true;
      sitting(found.pictures, questions);
    } catch (error) {
      if (stopped) return;
      if (error instanceof Failure && error.status === 401) failed(error);
      else fill(said, notice(error.message));
    } finally {
      ready();
    }
  }

  function sitting(shown, questions) {
    const answers = [];
    let at = 0;
    next();

    function next() {
      if (keys) removeEventListener("keydown", keys);
      keys = null;
      if (at === questions.length) {
        finish(answers);
        return;
      }
      const { anchor, forA, forB, swapped } = questions[at];
      const pair = swapped ? [forB, forA] : [forA, forB];
      const answer = (i) => {
        if (i !== null) answers.push(pair[i] === forA ? "a" : "b");
        at += 1;
        next();
      };
      const choice = (i) => h("button", { type: "button", class: "choice", "aria-label": `${i ? "Right" : "Left"} picture: ${shown[pair[i]].words}`, onclick: () => answer(i) },
        image(shown[pair[i]], { alt: "" }), h("kbd", {}, String(i + 1)));
      const first = choice(0);
      fill(out, h("section", { class: "question" },
        h("p", { class: "count", role: "status" }, `Question ${at + 1} of ${questions.length}`),
        h("h2", {}, "Which is more like this one?"),
        h("div", { class: "anchor" }, image(shown[anchor])),
        h("div", { class: "choices" }, first, choice(1)),
        h("p", { class: "row middle" }, h("button", { type: "button", class: "quiet", onclick: () => answer(null) }, "Neither, skip"),
          answers.length ? h("button", { type: "button", class: "quiet", onclick: () => finish(answers) }, "Stop here") : null)));
      first.focus({ preventScroll: true });
      keys = (event) => {
        if (event.key === "1" || event.key === "2") answer(Number(event.key) - 1);
      };
      addEventListener("keydown", keys);
    }
  }

  function finish(answers) {
    if (keys) removeEventListener("keydown", keys);
    keys = null;
    const won = answers.filter((answer) => answer === "b").length;
    const p = signTest(won, answers.length);
    const [better, times] = 2 * won >= answers.length ? [chosen.b, won] : [chosen.a, answers.length - won];
    const other = better === chosen.b ? chosen.a : chosen.b;
    const sure = !answers.length ? "You skipped every question, so nothing can be said."
      : 2 * won === answers.length ? "You chose as often with one as with the other."
        : p < 0.05 ? `You see these pictures as ${better} does.` : "That is too close to call.";
    const done = h("div", {});
    const target = [chosen.b, chosen.a].find((space) => space !== UNTOUCHED && !space.startsWith("cascade:"));
    const result = { prefers: better, over: other, won: times, of: answers.length, p: Number(p.toPrecision(3)), on: new Date().toISOString().slice(0, 10) };
    const save = h("button", { type: "button", onclick: async () => {
      try {
        const [name, pin] = target.split("@");
        const found = await get(`masks/${encodeURIComponent(name)}`);
        const version = pin ? found.aliases[pin] ?? Number(pin) : found.current.version;
        const notes = found.notes[version] || {};
        await send("PUT", `masks/${encodeURIComponent(name)}/notes?version=${version}`,
          { ...notes, preferences: [...(Array.isArray(notes.preferences) ? notes.preferences : []), result] });
        save.disabled = true;
        fill(done, notice(`Written to the notes of ${name}, version ${version}.`, "good"));
      } catch (error) {
        fill(done, notice(error.status === 403 ? "This key may read, not change. Use an admin's key." : error.message));
      }
    } }, `Write it to the notes of ${target}`);
    fill(out, h("section", { class: "verdict" },
      h("h2", {}, sure),
      answers.length ? [h("p", { class: "lead" }, `${times} of ${answers.length} times you chose as ${better} does, not as ${other}.`),
        h("div", { class: "tally", role: "img", "aria-label": `${chosen.a} ${answers.length - won}, ${chosen.b} ${won}` },
          h("span", { class: "side a", style: { "flex-grow": String(answers.length - won) } }), h("span", { class: "side b", style: { "flex-grow": String(won) } })),
        h("p", { class: "ends" }, h("span", {}, `${chosen.a}: ${answers.length - won}`), h("span", {}, `${chosen.b}: ${won}`)),
        h("p", { class: "hint" }, `Somebody who tosses a coin is as far from half in ${(100 * p).toFixed(p < 0.1 ? 1 : 0)} of 100 sittings (sign test, two-sided). Only what the two disagree about was asked.`)] : null,
      done,
      h("p", { class: "row spaced" }, target && answers.length ? save : null,
        h("button", { type: "button", class: "quiet", onclick: () => {
          setting.hidden = false;
          fill(out);
        } }, "Ask again"))));
    out.querySelector("h2").tabIndex = -1;
    out.querySelector("h2").focus();
  }
  return () => {
    stopped = true;
    if (keys) removeEventListener("keydown", keys);
  };
}

// Questions: `forA` is near the anchor in the first space and farther than `forB` there, in the second the other way.
function ask({ a, b }) {
  const ranks = { a: ranksOf(a.neighbours), b: ranksOf(b.neighbours) };
  const found = [];
  a.neighbours.forEach((row, anchor) => {
    let best = null;
    for (const forA of row.slice(0, CLOSE)) {
      for (const forB of b.neighbours[anchor].slice(0, CLOSE)) {
        const gap = Math.min(
          Math.min(rank(ranks.a, anchor, forB), NEIGHBOURS) - rank(ranks.a, anchor, forA),
          Math.min(rank(ranks.b, anchor, forA), NEIGHBOURS) - rank(ranks.b, anchor, forB));
        if (forA !== forB && gap > 0 && (!best || gap > best.gap)) best = { anchor, forA, forB, gap };
      }
    }
    if (best) found.push(best);
  });
  // The clearest disagreements, in an order that nobody can guess.
  return shuffle(found.sort((p, q) => q.gap - p.gap).slice(0, QUESTIONS)).map((question) => ({ ...question, swapped: coin() }));
}

const coin = () => crypto.getRandomValues(new Uint8Array(1))[0] < 128;

function shuffle(items) {
  for (let i = items.length - 1; i > 0; i--) {
    const j = crypto.getRandomValues(new Uint32Array(1))[0] % (i + 1);
    [items[i], items[j]] = [items[j], items[i]];
  }
  return items;
}

// Two-sided: how likely a fair coin is as far from half, or farther.
export function signTest(won, n) {
  const far = Math.max(won, n - won);
  let sum = 0;
  let term = 2 ** -n;
  for (let k = 0; k <= n; k++) {
    if (k >= far) sum += term;
    term = (term * (n - k)) / (k + 1);
  }
  return Math.min(1, 2 * sum);
}
