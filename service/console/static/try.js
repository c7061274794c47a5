// Try: your own pictures, two spaces, and what is near what in each.
import { BASE, Failure, get, key, call } from "./api.js";
import { h, show as fill } from "./dom.js";
import { codeTabs, dropPlace, head, notice, progress, queryOf, references, spaceChooser, UNTOUCHED } from "./parts.js";
import { addFiles, dropped, galleryPictures, image, sample, tile } from "./pictures.js";
import { embed, near } from "./vectors.js";

const NEAREST = 6;
const FROM_GALLERY = 24;
const chosen = { a: UNTOUCHED, b: null, pictures: null };

export async function show(main, argument, _, { failed }) {
  const [names, gallery] = await Promise.all([references(), galleryPictures()]);
  if (argument) chosen.b = argument;
  chosen.b = chosen.b || names.masks[0] || UNTOUCHED;
  let pictures = chosen.pictures || [...dropped];
  let stopped = false;
  const strip = h("div", { class: "strip" });
  const out = h("div", {});
  const said = h("div", {});
  const button = h("button", { type: "button", class: "main", onclick: compare }, "Compare");

  const drop = dropPlace("Drop pictures here, or choose some", (files) => {
    const refused = addFiles(files);
    fill(said, refused ? notice(`${refused} of ${files.length} files are no pictures.`) : null);
    pictures = [...dropped];
    ready();
    if (pictures.length > 1) compare();
  });
  fill(main,
    head("Try", "Drop pictures, choose two spaces, and see which of them each finds alike."),
    h("div", { class: "panel" },
      drop,
      gallery.length ? h("p", { class: "or" }, h("button", { type: "button", class: "quiet", onclick: () => {
        pictures = sample(gallery, FROM_GALLERY);
        ready();
        compare();
      } }, `Take ${Math.min(FROM_GALLERY, gallery.length)} of the server's pictures`)) : null,
      h("div", { class: "tools" },
        spaceChooser("This space", chosen.a, names, (value) => { chosen.a = value; }),
        spaceChooser("beside this one", chosen.b, names, (value) => { chosen.b = value; }), button)),
    said, strip, out);
  ready();
  if (pictures.length > 1) compare();

  function ready() {
    chosen.pictures = pictures;
    button.disabled = pictures.length < 2;
    fill(strip, pictures.length ? h("p", { class: "count" }, pictures.length === 1
      ? "One picture: add another one to compare it with." : `${pictures.length} pictures`) : null);
  }

  async function compare() {
    const bar = progress("Embedding");
    fill(said, bar.element);
    button.disabled = true;
    try {
      const half = pictures.length;
      const a = await embed(pictures, chosen.a, (done) => bar.set(done, 2 * half));
      const b = await embed(pictures, chosen.b, (done) => bar.set(half + done, 2 * half));
      if (stopped) return;
      const kept = pictures.map((_p, i) => i).filter((i) => a.rows[i] && b.rows[i]);
      fill(said, a.refused ? notice(a.refused) : null, b.warnings.map((warning) => notice(warning, "plain")));
      if (kept.length < 2) return;
      result(kept.map((i) => pictures[i]), kept.map((i) => a.rows[i]), kept.map((i) => b.rows[i]), a, b);
    } catch (error) {
      if (stopped) return;
      if (error instanceof Failure && error.status === 401) failed(error);
      else fill(said, notice(error.message));
    } finally {
      button.disabled = pictures.length < 2;
    }
  }

  function result(kept, rowsA, rowsB, a, b) {
    const most = Math.min(NEAREST, kept.length - 1);
    const nearA = kept.map((_, i) => near(rowsA, i));
    const nearB = kept.map((_, i) => near(rowsB, i));
    const changed = kept.map((_, i) => {
      const before = new Set(nearA[i].slice(0, most).map((n) => n.index));
      return nearB[i].slice(0, most).filter((n) => !before.has(n.index)).length;
    });
    const order = kept.map((_, i) => i).sort((i, j) => changed[j] - changed[i] || i - j);
    const total = changed.reduce((sum, n) => sum + n, 0);
    const beside = h("div", { class: "beside" });
    const tiles = order.map((i) => tile(kept[i], {
      pressed: false, note: changed[i] ? `${changed[i]} new` : "", chosen: () => look(i),
    }));
    fill(strip,
      h("h2", {}, "Choose a picture"),
      h("p", { class: "lead small" }, total
        ? `Those with most new neighbours come first. Of ${kept.length * most} places beside a picture, ${total} changed.`
        : `The two spaces agree: of ${kept.length * most} places beside a picture, none changed.`),
      h("div", { class: "tiles" }, tiles));
    const labels = h("div", {});
    fill(out, beside, labels, request());
    look(order[0]);

    function look(i) {
      for (const [at, element] of tiles.entries()) element.setAttribute("aria-pressed", String(order[at] === i));
      fill(beside, h("div", { class: "this" }, h("h3", {}, "This picture"), image(kept[i])), column(chosen.a, nearA[i], nearB[i], a.space, "gone"), column(chosen.b, nearB[i], nearA[i], b.space, "new"));
      classify(kept[i], labels);
    }

    function column(space, here, there, spaceId, mark) {
      const others = new Set(there.slice(0, most).map((n) => n.index));
      return h("section", {}, h("h3", {}, `Nearest in ${space}`),
        h("ol", { class: "near" }, here.slice(0, most).map(({ index, similarity }) => h("li", { class: others.has(index) ? null : "differs" },
          image(kept[index]),
          h("span", { class: "similarity" }, similarity.toFixed(3)),
          others.has(index) ? null : h("span", { class: "mark" }, mark)))),
        spaceId ? h("p", { class: "hint mono" }, spaceId) : null);
    }
  }

  // Only masks with a head have labels; others answer 409, and nothing is shown.
  async function classify(picture, place) {
    fill(place);
    if (!chosen.b || chosen.b === UNTOUCHED) return;
    try {
      const [name, pin] = chosen.b.split("@");
      const head_ = chosen.b.startsWith("cascade:") || pin || (await get(`masks/${encodeURIComponent(name)}`)).metadata.classes;
      if (!head_) return;
      const body = await picture.blob();
      const answer = await (await call(`classify?${queryOf(chosen.b)}&top=3`, {
        method: "POST", body, headers: { "Content-Type": body.type || "image/jpeg" } })).json();
      const row = answer.data[0];
      fill(place, h("section", {}, h("h3", {}, `What ${chosen.b} calls it`), h("ul", { class: "labels" },
        row.classes.map((label, i) => h("li", {}, h("span", { class: "name" }, label),
          h("meter", { min: 0, max: 1, value: row.probs[i], "aria-label": label }),
          h("span", { class: "similarity" }, `${(100 * row.probs[i]).toFixed(0)} %`))))));
    } catch {
      fill(place); // no head, or a server without labels
    }
  }

  function request() {
    const query = queryOf(chosen.b);
    const address = new URL(`embed${query ? `?${query}` : ""}`, BASE).href;
    const keyed = Boolean(key());
    return h("section", {}, h("h2", {}, "The same from your program"), codeTabs({
      curl: `curl ${keyed ? "-H 'Authorization: Bearer KEY' " : ""}-F image=@photo.jpg '${address}'`,
      Python: [
        "import httpx2", "",
        "answer = httpx2.post(", `    "${address}",`, '    files={"image": open("photo.jpg", "rb")},',
        keyed ? '    headers={"Authorization": "Bearer KEY"},' : null, ")", 'vector = answer.json()["embeddings"][0]',
      ].filter((line) => line !== null).join("\n"),
      JavaScript: [
        "const body = new FormData();", 'body.append("image", file);',
        `const answer = await fetch("${address}", {`, '  method: "POST", body,',
        keyed ? '  headers: { Authorization: "Bearer KEY" },' : null, "});",
        "const vector = (await answer.json()).embeddings[0];",
      ].filter((line) => line !== null).join("\n"),
    }));
  }
  return () => {
    stopped = true;
  };
}
