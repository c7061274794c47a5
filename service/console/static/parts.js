// What several pages show: notices, density pictures, choosers of spaces, places to drop files, code to copy.
import { all } from "./api.js";
import { h, newId, svg } from "./dom.js";

export const UNTOUCHED = "untouched backbone";

export function notice(text, kind = "bad", ...more) {
  return h("div", { class: `notice ${kind}`, role: kind === "bad" ? "alert" : "status" }, h("p", {}, text), ...more);
}

export function head(title, lead) {
  document.title = `${title} · SMN`;
  return h("header", { class: "head" }, h("h1", {}, title), lead ? h("p", { class: "lead" }, lead) : null);
}

// Mean share of OFF weights of a stage's tensors, in the order of the model.
export function stagesOf(density) {
  const stages = new Map();
  for (const [tensor, on] of Object.entries(density)) {
    const found = /^(?:stages|layers|blocks|layer|block)[._]?(\d+)/.exec(tensor) || /^([^.]+)/.exec(tensor);
    const stage = stages.get(found[1]) || { sum: 0, n: 0 };
    stage.sum += 1 - on;
    stage.n += 1;
    stages.set(found[1], stage);
  }
  return [...stages].map(([name, { sum, n }]) => ({ name, off: sum / n }));
}

export function percent(share) {
  if (share === 0) return "0 %";
  const text = 100 * share;
  return `${text >= 1 ? text.toFixed(1) : text.toPrecision(2)} %`;
}

export function densityPicture(density, { large = false } = {}) {
  const stages = stagesOf(density);
  const most = Math.max(...stages.map((stage) => stage.off), 1e-12);
  const step = large ? 34 : 9;
  const height = large ? 120 : 28;
  const words = `OFF weights by stage: ${stages.map((s) => `${s.name} ${percent(s.off)}`).join(", ")}`;
  const bars = stages.map((stage, i) => {
    const tall = stage.off === 0 ? 0 : Math.max(1.5, (stage.off / most) * (height - 2));
    return [
      svg("rect", { class: "slot", x: i * step, y: 0, width: step - (large ? 8 : 2), height, rx: large ? 3 : 1.5 }),
      svg("rect", {
        class: "off", x: i * step, y: height - tall, width: step - (large ? 8 : 2), height: tall, rx: large ? 3 : 1.5,
      }),
      large ? svg("text", { x: i * step + (step - 8) / 2, y: height + 16, "text-anchor": "middle" }, stage.name) : null,
    ];
  });
  const size = { width: Math.max(1, stages.length * step), height: large ? height + 22 : height };
  return svg(
    "svg",
    { class: large ? "density large" : "density", role: "img", "aria-label": words,
      viewBox: `0 0 ${size.width} ${size.height}`, width: size.width, height: size.height },
    svg("title", {}, words), bars,
  );
}

// What a mask's judgement says, from its metrics: adopt, leave it, cannot tell; null where nobody judged.
export function verdictOf(metadata) {
  try {
    const found = typeof metadata.metrics === "string" ? JSON.parse(metadata.metrics) : metadata.metrics;
    const answer = found && found.verdict && found.verdict.answer;
    return typeof answer === "string" ? { answer, reason: String(found.verdict.reason || "") } : null;
  } catch {
    return null;
  }
}

export function verdictBadge(metadata) {
  const verdict = verdictOf(metadata);
  if (!verdict) return h("span", { class: "badge quiet" }, "not judged");
  const kind = { adopt: "good", "leave it": "bad" }[verdict.answer] || "quiet";
  return h("span", { class: `badge ${kind}` }, verdict.answer);
}

// References that can be chosen: the root, masks, cascades.
let listed = null;
export async function references({ again = false } = {}) {
  if (!listed || again) {
    const [masks, cascades] = await Promise.all([all("masks"), all("cascades")]);
    listed = { masks: masks.map((m) => m.name), cascades: cascades.map((c) => c.name) };
  }
  return listed;
}
export const forgetReferences = () => {
  listed = null;
};

// "" is the root; the query of /embed, /map and /classify.
export function queryOf(space) {
  if (!space || space === UNTOUCHED) return "";
  return space.startsWith("cascade:")
    ? `cascade=${encodeURIComponent(space.slice(8))}`
    : `mask=${encodeURIComponent(space)}`;
}

export function spaceChooser(label, value, names, changed) {
  const id = newId();
  const list = newId();
  const input = h("input", {
    id, list, value: value || UNTOUCHED, autocomplete: "off", spellcheck: "false",
    onchange: () => {
      input.value = input.value.trim() || UNTOUCHED;
      changed(input.value);
    },
    onfocus: () => input.select(),
  });
  const options = [UNTOUCHED, ...names.masks, ...names.cascades.map((name) => `cascade:${name}`)];
  return h("div", { class: "field" },
    h("label", { for: id }, label), input,
    h("datalist", { id: list }, options.map((option) => h("option", { value: option }))));
}

export function dropPlace(words, taken, { accept = "image/*", multiple = true } = {}) {
  const id = newId();
  const input = h("input", {
    id, type: "file", accept, multiple, class: "visually-hidden",
    onchange: () => {
      if (input.files.length) taken([...input.files]);
      input.value = "";
    },
  });
  const place = h("div", { class: "drop" }, input, h("label", { for: id }, words));
  const over = (on) => (event) => {
    event.preventDefault();
    place.classList.toggle("over", on);
  };
  place.addEventListener("dragover", over(true));
  place.addEventListener("dragleave", over(false));
  place.addEventListener("drop", (event) => {
    over(false)(event);
    if (event.dataTransfer.files.length) taken([...event.dataTransfer.files]);
  });
  return place;
}

export function codeTabs(samples) {
  const text = h("pre", { tabindex: "0", "aria-label": "The request as code" });
  const buttons = Object.keys(samples).map((name) =>
    h("button", { type: "button", class: "tab", "aria-pressed": "false", onclick: () => choose(name) }, name));
  const copy = h("button", { type: "button", class: "quiet", onclick: async () => {
    try {
      await navigator.clipboard.writeText(text.textContent);
      copy.textContent = "Copied";
    } catch {
      getSelection().selectAllChildren(text);
      copy.textContent = "Selected: press Ctrl+C";
    }
  } }, "Copy");
  function choose(name) {
    text.textContent = samples[name];
    copy.textContent = "Copy";
    for (const button of buttons) button.setAttribute("aria-pressed", String(button.textContent === name));
  }
  choose(Object.keys(samples)[0]);
  return h("div", { class: "code" }, h("div", { class: "tabs" }, buttons, copy), text);
}

export function progress(words) {
  const bar = h("progress", { max: 1, value: 0, "aria-label": words });
  const text = h("span", {}, words);
  return {
    element: h("div", { class: "progress", role: "status" }, bar, text),
    set(done, of) {
      bar.max = of;
      bar.value = done;
      text.textContent = `${words}: ${done} of ${of}`;
    },
  };
}
