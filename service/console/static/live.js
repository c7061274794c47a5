// Live: what the server does now, from /metrics. Numbers have places of a fixed width, so that nothing moves.
import { call } from "./api.js";
import { bytes, h, show as fill, svg, whole } from "./dom.js";
import { head, notice } from "./parts.js";
import { parse, total } from "./prometheus.js";

const EVERY_MS = 2000;
const KEPT = 60;
const STAGES = ["decode", "queue", "swap", "forward"];

export async function show(main, _argument, _page, { failed }) {
  const rates = [];
  let before = null;
  let timer = null;
  let stopped = false;
  const number = (label, unit = "") => {
    const value = h("output", { class: "value" }, "–");
    return { value, element: h("div", { class: "figure" }, h("span", { class: "label" }, label), value, h("span", { class: "unit" }, unit)) };
  };
  const figures = {
    images: number("Images", "a second"), queue: number("In work", "images"), answers: number("Answers", "a second"),
    errors: number("Errors", "lately"), batch: number("A batch", "images"), loads: number("Cold masks", "fetched lately"),
  };
  const line = svg("polyline", { class: "line", points: "" });
  const most = h("span", { class: "hint" }, "–");
  const chart = svg("svg", { class: "chart", viewBox: "0 0 600 120", preserveAspectRatio: "none", role: "img",
    "aria-label": "Images a second over the last two minutes" }, line);
  const parts = STAGES.map((stage) => ({
    stage, bar: h("span", { class: `part ${stage}` }), value: h("span", { class: "value" }, "–"),
  }));
  const tiers = { slot: h("span", { class: "value" }, "–"), host: h("span", { class: "value" }, "–") };
  const memory = { theta: h("span", { class: "value" }, "–"), slot: h("span", { class: "value" }, "–"), host: h("span", { class: "value" }, "–") };
  const state = h("p", { class: "state", role: "status" }, "Listening");
  const trouble = h("div", {});
  fill(main,
    head("Live", "What this server does now. It looks every two seconds; lately is the last two minutes."),
    trouble,
    h("div", { class: "figures" }, Object.values(figures).map((figure) => figure.element)),
    h("section", {}, h("h2", {}, "Images a second"), h("div", { class: "plot" }, chart), most),
    h("div", { class: "halves" },
      h("section", {}, h("h2", {}, "Where the time of a request goes"), h("div", { class: "stages", "aria-hidden": "true" }, parts.map((part) => part.bar)),
        h("dl", { class: "pairs" }, parts.map(({ stage, value }) => [h("dt", { class: stage }, h("span", { class: "swatch" }), stage), h("dd", {}, value)]))),
      h("section", {}, h("h2", {}, "Masks in memory"), h("dl", { class: "pairs" },
        h("dt", {}, "ready in a slot"), h("dd", {}, tiers.slot), h("dt", {}, "in host memory"), h("dd", {}, tiers.host),
        h("dt", {}, "the backbone takes"), h("dd", {}, memory.theta), h("dt", {}, "slots take"), h("dd", {}, memory.slot),
        h("dt", {}, "masks take"), h("dd", {}, memory.host)))),
    state);
  await look();

  async function look() {
    clearTimeout(timer);
    if (stopped) return;
    if (!document.hidden) {
      try {
        const text = await (await call("metrics")).text();
        if (stopped) return;
        draw(parse(text), performance.now());
        fill(trouble);
        state.textContent = "Listening";
      } catch (error) {
        if (stopped) return;
        if (!before && error.status !== 0) return failed(error);
        fill(trouble, notice(error.message));
        state.textContent = "Waiting for the server";
        before = null;
      }
    }
    timer = setTimeout(look, EVERY_MS);
    return undefined;
  }

  function draw(now, at) {
    const was = before;
    before = { now, at };
    figures.queue.value.textContent = whole(total(now, "smn_queue_images"));
    for (const [tier, place] of Object.entries(tiers)) place.textContent = whole(total(now, "smn_masks_resident", `tier="${tier}"`));
    for (const [tier, place] of Object.entries(memory)) place.textContent = bytes(total(now, "smn_masks_bytes", `tier="${tier}"`));
    if (!was) return;
    const seconds = (at - was.at) / 1000;
    const more = (name, wanted) => Math.max(0, total(now, name, wanted) - total(was.now, name, wanted));
    const images = more("smn_batch_images_sum");
    const batches = more("smn_batch_images_count");
    rates.push({
      images: images / seconds, answers: more("smn_request_total", 'outcome="ok"') / seconds,
      errors: more("smn_request_total", 'outcome="server_error"') + more("smn_request_total", 'outcome="client_error"'),
      loads: more("smn_load_seconds_count"),
      stages: STAGES.map((stage) => [more(`smn_${stage}_seconds_sum`), more(`smn_${stage}_seconds_count`)]),
    });
    if (rates.length > KEPT) rates.shift();
    figures.images.value.textContent = (images / seconds).toFixed(1);
    figures.answers.value.textContent = rates.at(-1).answers.toFixed(1);
    figures.batch.value.textContent = batches ? (images / batches).toFixed(1) : "–";
    for (const name of ["errors", "loads"]) figures[name].value.textContent = whole(rates.reduce((sum, rate) => sum + rate[name], 0));
    const highest = Math.max(1, ...rates.map((rate) => rate.images));
    line.setAttribute("points", rates.map((rate, i) =>
      `${(600 * (KEPT - rates.length + i)) / (KEPT - 1)},${116 - (112 * rate.images) / highest}`).join(" "));
    most.textContent = `The top of the picture is ${highest.toFixed(1)} images a second.`;
    const means = STAGES.map((_, i) => {
      const [sum, count] = rates.reduce(([s, n], rate) => [s + rate.stages[i][0], n + rate.stages[i][1]], [0, 0]);
      return count ? (1000 * sum) / count : 0;
    });
    const all = means.reduce((sum, mean) => sum + mean, 0) || 1;
    for (const [i, part] of parts.entries()) {
      part.bar.style.flexGrow = String(means[i] / all);
      part.value.textContent = `${means[i].toFixed(1)} ms`;
    }
  }
  const seen = () => !document.hidden && look();
  document.addEventListener("visibilitychange", seen);
  return () => {
    stopped = true;
    clearTimeout(timer);
    document.removeEventListener("visibilitychange", seen);
  };
}
