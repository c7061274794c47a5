// Explore: a whole set of pictures in two spaces: grid, neighbours, maps, and what came together or went apart.
import { Failure } from "./api.js";
import { h, newId, show as fill, svg, whole } from "./dom.js";
import { grid } from "./grid.js";
import { rank, ranksOf, twoMaps } from "./maps.js";
import { dropPlace, head, notice, progress, references, spaceChooser, UNTOUCHED } from "./parts.js";
import { addFiles, dropped, galleryPictures, image, sample } from "./pictures.js";

const MOST_MAPPED = 400;
const NEIGHBOURS = 24;
const SHOWN = 6;
const PAIRS = 6;
const COLOURS = 8;
const chosen = { a: UNTOUCHED, b: null };

export async function show(main, argument, _, { failed }) {
  const [names, gallery] = await Promise.all([references(), galleryPictures()]);
  chosen.b = argument || chosen.b || names.masks[0] || UNTOUCHED;
  let pictures = dropped.length ? [...dropped] : gallery;
  let stopped = false;
  let board = null;
  const said = h("div", {});
  const out = h("div", {});
  const grids = h("div", {});
  const button = h("button", { type: "button", class: "main", onclick: look }, "Map them");
  const drop = dropPlace(gallery.length ? "Or drop pictures of your own here" : "Drop pictures here, or choose some", (files) => {
    const refused = addFiles(files);
    pictures = [...dropped];
    fill(said, refused ? notice(`${refused} of ${files.length} files are no pictures.`) : null);
    lay();
  });
  fill(main,
    head("Explore", "A whole set of pictures in two spaces: what lies near what, and what a mask moved."),
    gallery.length ? null : h("div", { class: "panel" }, drop,
      h("p", { class: "hint spaced" }, "Or start the server with a folder of pictures: smn serve --gallery photos/")),
    h("div", { class: "tools" },
      spaceChooser("This space", chosen.a, names, (value) => { chosen.a = value; }),
      spaceChooser("beside this one", chosen.b, names, (value) => { chosen.b = value; }), button),
    said, out, grids,
    gallery.length ? h("div", { class: "later" }, drop) : null);
  lay();

  function lay() {
    if (board) board.close();
    button.disabled = pictures.length < 3;
    fill(out);
    if (!pictures.length) {
      fill(grids);
      return;
    }
    board = grid(pictures, () => {}, { label: "All pictures" });
    fill(grids, h("h2", {}, `${whole(pictures.length)} pictures`), board.element);
  }

  async function look() {
    const bar = progress("Embedding");
    fill(said, bar.element);
    button.disabled = true;
    const some = sample(pictures, MOST_MAPPED);
    try {
      const found = await twoMaps(some, chosen.a, chosen.b, (which) => ({
        neighbours: NEIGHBOURS, stopped: () => stopped,
        told: (done, of) => bar.set(which === "first" ? done : of + done, 2 * of),
      }));
      if (!found || stopped) return;
      fill(said, some.length < pictures.length
        ? notice(`${whole(some.length)} of the ${whole(pictures.length)} pictures are mapped, evenly chosen.`, "plain") : null);
      result(found);
    } catch (error) {
      if (stopped) return;
      if (error instanceof Failure && error.status === 401) failed(error);
      else fill(said, notice(error.message));
    } finally {
      button.disabled = pictures.length < 3;
    }
  }

  function result({ pictures: mapped, a, b }) {
    const labels = [...new Set(mapped.map((picture) => picture.label).filter(Boolean))];
    const beside = h("div", { class: "beside" });
    const colour = { by: labels.length > 1 ? "label" : "cluster" };
    const names_ = { a: chosen.a, b: chosen.b };
    const maps = [plot(names_.a, a), plot(names_.b, b)];
    const legend = h("ul", { class: "legend" });
    const select = h("select", { id: newId(), onchange: () => {
      colour.by = select.value;
      paint();
    } }, labels.length > 1 ? h("option", { value: "label" }, "folder") : null, h("option", { value: "cluster" }, "cluster of the second space"));
    board.close();
    board = grid(mapped, (i) => pick(i), { label: "Mapped pictures" });
    const moved = movements(a, b);
    fill(out,
      h("div", { class: "tools spread" }, h("div", { class: "field short" }, h("label", { for: select.id }, "Colour by"), select), legend),
      h("div", { class: "maps" }, maps.map((map) => map.element)),
      h("h2", { class: "visually-hidden" }, "Neighbours"), beside);
    fill(grids, h("h2", {}, "Choose a picture"), board.element,
      h("div", { class: "halves" }, pairs("Moved together", `Close in ${names_.b}, farther apart in ${names_.a}.`, moved.together),
        pairs("Moved apart", `Close in ${names_.a}, farther apart in ${names_.b}.`, moved.apart)));
    paint();
    pick(moved.most);

    function pick(i) {
      for (const map of maps) map.mark(i);
      board.mark(i);
      fill(beside, h("div", { class: "this" }, h("h3", {}, "This picture"), image(mapped[i])), near(names_.a, a.neighbours[i], b.neighbours[i], "gone"), near(names_.b, b.neighbours[i], a.neighbours[i], "new"));
    }

    function near(space, here, there, mark) {
      const others = new Set(there.slice(0, SHOWN));
      return h("section", {}, h("h3", {}, `Nearest in ${space}`), h("ol", { class: "near" }, here.slice(0, SHOWN).map((j) =>
        h("li", { class: others.has(j) ? null : "differs" }, image(mapped[j]), others.has(j) ? null : h("span", { class: "mark" }, mark)))));
    }

    function paint() {
      const group = colour.by === "label" ? mapped.map((p) => labels.indexOf(p.label)) : b.clusters;
      const classOf = (g) => `k${g < 0 || g >= COLOURS ? COLOURS : g}`;
      for (const map of maps) map.paint(group.map(classOf));
      const n = colour.by === "label" ? labels.length : Math.max(...b.clusters) + 1;
      fill(legend, Array.from({ length: Math.min(n, COLOURS) }, (_, g) => h("li", {}, h("span", { class: `dot ${classOf(g)}` }),
        colour.by === "label" ? labels[g] : `cluster ${g + 1}`)), n > COLOURS ? h("li", {}, h("span", { class: "dot k8" }), "others") : null);
    }

    function plot(space, map) {
      const dots = map.places.map(([x, y], i) => svg("circle", { cx: 8 + 384 * x, cy: 8 + 384 * y, r: 3.5, onclick: () => pick(i) }));
      const ring = svg("circle", { class: "ring", r: 8 });
      return {
        element: h("figure", { class: "map" }, svg("svg", { viewBox: "0 0 400 400", role: "img",
          "aria-label": `Map of ${dots.length} pictures in ${space}` }, dots, ring), h("figcaption", {}, space)),
        paint: (classes) => dots.forEach((dot, i) => dot.setAttribute("class", classes[i])),
        mark: (i) => {
          ring.setAttribute("cx", dots[i].getAttribute("cx"));
          ring.setAttribute("cy", dots[i].getAttribute("cy"));
        },
      };
    }

    function pairs(title, words, found) {
      return h("section", {}, h("h2", {}, title), h("p", { class: "hint" }, words), found.length
        ? h("ul", { class: "pairs-of" }, found.map(([i, j]) => h("li", {},
          h("button", { type: "button", class: "pair", "aria-label": `${mapped[i].words} and ${mapped[j].words}`, onclick: () => {
            pick(i);
            beside.scrollIntoView({ block: "center" });
          } }, image(mapped[i], { alt: "" }), image(mapped[j], { alt: "" })))))
        : h("p", {}, "None: the two spaces agree about these pictures."));
    }
  }
  return () => {
    stopped = true;
    if (board) board.close();
  };
}

// Pairs that are close in one space and not in the other, the greatest change first; each picture once.
function movements(a, b) {
  const ranks = { a: ranksOf(a.neighbours), b: ranksOf(b.neighbours) };
  const found = (here, there, rows) => {
    const all = [];
    rows.forEach((row, i) => row.slice(0, 3).forEach((j, place) => {
      const far = Math.min(rank(there, i, j), rank(there, j, i), NEIGHBOURS);
      if (far >= SHOWN) all.push([i, j, place + Math.min(rank(here, j, i), NEIGHBOURS) - far]);
    }));
    const used = new Set();
    return all.sort((p, q) => p[2] - q[2] || p[0] - q[0]).filter(([i, j]) => {
      if (used.has(i) || used.has(j)) return false;
      used.add(i).add(j);
      return true;
    }).slice(0, PAIRS);
  };
  const changed = a.neighbours.map((row, i) => row.slice(0, SHOWN).filter((j) => rank(ranks.b, i, j) >= SHOWN).length);
  return {
    together: found(ranks.b, ranks.a, b.neighbours), apart: found(ranks.a, ranks.b, a.neighbours),
    most: changed.indexOf(Math.max(...changed)),
  };
}
