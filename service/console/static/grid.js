// A grid of thousands of pictures: only the rows in sight are there. One tab stop; arrows move inside it.
import { h } from "./dom.js";
import { tile } from "./pictures.js";

const GAP = 8;
const LEAST = 92;
const AHEAD = 3; // rows

export function grid(pictures, chosen, { label }) {
  const space = h("div", { class: "grid-space" });
  const place = h("div", { class: "grid", role: "group", "aria-label": label, tabindex: "-1" }, space);
  const made = new Map();
  let columns = 1;
  let size = LEAST;
  let current = 0;
  let waiting = 0;

  function measure() {
    const width = space.clientWidth;
    columns = Math.max(1, Math.floor((width + GAP) / (LEAST + GAP)));
    size = Math.floor((width - GAP * (columns - 1)) / columns);
    space.style.height = `${Math.ceil(pictures.length / columns) * (size + GAP)}px`;
    for (const element of made.values()) element.remove();
    made.clear();
    draw();
  }

  function draw() {
    waiting = 0;
    const step = size + GAP;
    const first = Math.max(0, Math.floor(place.scrollTop / step) - AHEAD) * columns;
    const last = Math.min(pictures.length, (Math.ceil((place.scrollTop + place.clientHeight) / step) + AHEAD) * columns);
    for (const [i, element] of made) {
      if ((i < first || i >= last) && i !== current) {
        element.remove();
        made.delete(i);
      }
    }
    for (let i = first; i < last; i++) add(i);
    if (pictures.length) add(current);
  }

  function add(i) {
    if (made.has(i)) return;
    const element = tile(pictures[i], { pressed: i === current, chosen: () => choose(i) });
    element.classList.add("placed");
    element.tabIndex = i === current ? 0 : -1;
    const step = size + GAP;
    element.style.width = `${size}px`;
    element.style.transform = `translate(${(i % columns) * step}px, ${Math.floor(i / columns) * step}px)`;
    made.set(i, element);
    space.append(element);
  }

  function mark(i) {
    const before = made.get(current);
    current = i;
    if (before) {
      before.tabIndex = -1;
      before.setAttribute("aria-pressed", "false");
    }
    const step = size + GAP;
    const top = Math.floor(i / columns) * step;
    if (top < place.scrollTop || top + size > place.scrollTop + place.clientHeight) {
      place.scrollTop = Math.max(0, top - place.clientHeight / 2 + size);
    }
    draw();
    made.get(i).tabIndex = 0;
    made.get(i).setAttribute("aria-pressed", "true");
  }

  function choose(i) {
    mark(i);
    chosen(i);
  }

  place.addEventListener("scroll", () => {
    if (!waiting) waiting = requestAnimationFrame(draw);
  }, { passive: true });
  place.addEventListener("keydown", (event) => {
    const moves = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: columns, ArrowUp: -columns, Home: -current, End: pictures.length - 1 - current };
    if (!Object.hasOwn(moves, event.key)) return;
    event.preventDefault();
    choose(Math.min(pictures.length - 1, Math.max(0, current + moves[event.key])));
    made.get(current).focus({ preventScroll: true });
  });
  const sized = new ResizeObserver(measure);
  sized.observe(place);
  return { element: place, mark, close: () => sized.disconnect() };
}
