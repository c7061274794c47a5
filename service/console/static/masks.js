// Masks and cascades: the list, one of them with its versions, and what an admin may change.
import { all, call, get, info, queue, send } from "./api.js";
import { bytes, h, newId, show as fill, when, whole } from "./dom.js";
import { densityPicture, dropPlace, forgetReferences, head, notice, percent, stagesOf, verdictBadge, verdictOf } from "./parts.js";

const NAME = /[^a-z0-9._-]+/g;

export async function show(main, name, kind, shell) {
  return name ? one(main, name, kind, shell) : list(main, shell);
}

async function list(main, { failed }) {
  const [masks, cascades] = await Promise.all([all("masks"), all("cascades")]);
  const said = h("div", {});
  const fetching = queue(4);
  const seen = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      if (!entry.isIntersecting) continue;
      seen.unobserve(entry.target);
      entry.target.fillIn();
    }
  }, { rootMargin: "200px" });
  const rows = masks.map((mask) => row(mask, fetching));
  const filter = h("input", { type: "search", id: newId(), placeholder: "photos", oninput: () => {
    const wanted = filter.value.trim().toLowerCase();
    let left = 0;
    for (const [i, element] of rows.entries()) {
      element.hidden = !masks[i].name.includes(wanted);
      left += element.hidden ? 0 : 1;
    }
    counted.textContent = words(left, "mask");
  } });
  const counted = h("p", { class: "count", role: "status" }, words(masks.length, "mask"));
  const upload = dropPlace("Drop a mask file here, or choose one", (files) => uploadAll(files), { accept: ".smn" });
  fill(main,
    head("Masks", "Each one turns the same frozen backbone into a specialist, by switching a few of its weights off."),
    said,
    masks.length
      ? [h("div", { class: "tools" },
        h("div", { class: "field" }, h("label", { for: filter.id }, "Find a name"), filter), counted),
      h("ul", { class: "masks" }, rows)]
      : h("div", { class: "empty" }, h("h2", {}, "No masks yet"),
        h("p", {}, "Learn one from a folder of photos, then drop it here:"),
        h("pre", { tabindex: "0", "aria-label": "Command" }, "smn adapt photos/ --out photos.smn")),
    upload,
    cascades.length ? [h("h2", {}, "Cascades"), h("ul", { class: "masks" }, cascades.map((c) => h("li", {},
      h("a", { class: "name", href: `#/cascades/${encodeURIComponent(c.name)}` }, c.name),
      h("span", { class: "fact" }, words(c.versions, "version")))))] : null);
  for (const element of rows) seen.observe(element);

  async function uploadAll(files) {
    const done = [];
    for (const file of files) {
      const name = file.name.toLowerCase().replace(/\.smn$/, "").replace(NAME, "-").replace(/^[^a-z0-9]+/, "") || "mask";
      try {
        const answer = await (await call(`masks/${name}`, { method: "PUT", body: file })).json();
        done.push(notice(`${file.name} is ${answer.name}, version ${answer.version}.`, "good",
          answer.warnings.map((warning) => h("p", {}, warning))));
      } catch (error) {
        if (error.status === 401) return failed(error);
        done.push(notice(`${file.name}: ${inWords(error)}`));
      }
    }
    forgetReferences();
    await list(main, { failed });
    main.querySelector(".head").after(...done);
    return undefined;
  }
  return () => seen.disconnect();
}

function row(mask, fetching) {
  const picture = h("span", { class: "picture" });
  const facts = h("span", { class: "facts" }, h("span", { class: "fact" }, words(mask.versions, "version")));
  const element = h("li", {},
    h("a", { class: "name", href: `#/masks/${encodeURIComponent(mask.name)}` }, mask.name), picture, facts);
  element.fillIn = () => fetching(() => get(`masks/${encodeURIComponent(mask.name)}`)).then((found) => {
    const current = found.versions.find((version) => version.version === found.current.version);
    const aliases = Object.entries(found.aliases);
    fill(picture, densityPicture(found.density));
    fill(facts,
      verdictBadge(found.metadata),
      h("span", { class: "fact" }, `version ${found.current.version}${mask.versions > 1 ? ` of ${mask.versions}` : ""}`),
      h("span", { class: "fact" }, bytes(current.bytes)),
      found.metadata.affine ? h("span", { class: "fact" }, "with a map") : null,
      aliases.length ? h("span", { class: "fact" }, aliases.map(([alias, at]) => `@${alias} is ${at}`).join(", ")) : null);
  }, (error) => fill(facts, h("span", { class: "fact" }, error.message)));
  return element;
}

async function one(main, name, kind, shell) {
  const path = `${kind}/${encodeURIComponent(name)}`;
  const found = await get(path);
  const said = h("div", {});
  const change = async (work, words_) => {
    try {
      await work();
      forgetReferences();
      await one(main, name, kind, shell);
      main.querySelector(".head").after(notice(words_, "good"));
    } catch (error) {
      if (error.status === 401) shell.failed(error);
      else fill(said, notice(inWords(error)));
    }
  };
  const versions = [...found.versions].reverse().map((version) => {
    const current = version.version === found.current.version;
    const aliases = Object.entries(found.aliases).filter(([, at]) => at === version.version).map(([alias]) => alias);
    return h("tr", {},
      h("th", { scope: "row" }, String(version.version)),
      h("td", {}, current ? h("span", { class: "badge good" }, "current") : null,
        aliases.map((alias) => h("span", { class: "badge quiet" }, `@${alias}`))),
      h("td", { class: "number" }, bytes(version.bytes)),
      h("td", {}, when(version.uploaded)),
      h("td", { class: "actions" },
        h("button", { type: "button", class: "quiet", "aria-label": `Download version ${version.version}`,
          onclick: () => download(path, name, kind, version.version).catch((error) => fill(said, notice(inWords(error)))) },
        "Download"),
        current ? null : h("button", { type: "button", class: "quiet", "aria-label": `Make version ${version.version} current`,
          onclick: () => change(() => send("PUT", `${path}/current`, { version: version.version }),
            `Version ${version.version} is current now.`) }, "Make current")));
  });
  const notes = Object.entries(found.notes || {});
  fill(main,
    h("p", { class: "back" }, h("a", { href: "#/masks" }, "Masks")),
    head(name, kind === "masks" ? summary(found) : `A cascade of ${found.masks.length} masks, fused by ${found.fusion}.`),
    said,
    (found.warnings || []).map((warning) => notice(warning, "plain")),
    kind === "masks" ? await card(found) : members(found),
    h("section", {}, h("h2", {}, "Versions"),
      h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Versions" }, h("table", {},
        h("thead", {}, h("tr", {}, ["Version", "", "Size", "Uploaded", ""].map((text, i) =>
          text ? h("th", { scope: "col", class: i === 2 ? "number" : null }, text) : h("td", {})))),
        h("tbody", {}, versions)))),
    notes.length ? h("section", {}, h("h2", {}, "Notes"), notes.map(([version, note]) => [
      h("h3", {}, `Version ${version}`),
      h("pre", { tabindex: "0", "aria-label": `Notes of version ${version}` }, JSON.stringify(note, null, 2))])) : null,
    deletion(name, kind, async () => {
      try {
        await call(path, { method: "DELETE" });
        forgetReferences();
        location.hash = "#/masks";
      } catch (error) {
        if (error.status === 401) shell.failed(error);
        else {
          fill(said, notice(inWords(error)));
          said.scrollIntoView({ block: "center" });
        }
      }
    }));
}

function summary(found) {
  const shares = stagesOf(found.density);
  const mean = shares.reduce((sum, stage) => sum + stage.off, 0) / Math.max(1, shares.length);
  if (mean === 0) return found.metadata.affine ? "No weight is off: this mask is a map of the backbone's vectors." : "No weight is off.";
  const map = found.metadata.affine ? " A map of the vectors follows." : "";
  return `${percent(mean)} of the weights are switched off, on average over the stages.${map}`;
}

async function card(found) {
  const verdict = verdictOf(found.metadata);
  const { model } = await info();
  const facts = [
    ["Verdict", verdict ? [verdictBadge(found.metadata), verdict.reason ? h("p", {}, verdict.reason) : null] : verdictBadge(found.metadata)],
    ["Backbone", model],
    ["Learned by", found.metadata.objective],
    ["Images", found.metadata.dataset],
    ["Labels", (found.metadata.classes || []).join(", ")],
    ["Map", found.metadata.affine ? `${found.metadata.affine.form}, ${bytes(found.metadata.affine.bytes)}` : "none"],
    ["Space", found.space],
    ["Digest", found.current.digest],
  ];
  const rest = Object.entries(found.metadata).filter(([key, value]) => value !== null && key !== "fingerprint" && key !== "model");
  return h("section", { class: "card" },
    h("div", { class: "look" }, h("h2", {}, "Where weights are off"), densityPicture(found.density, { large: true }),
      h("p", { class: "hint" }, "By stage of the backbone, on the scale of the tallest one.")),
    h("dl", {}, facts.filter(([, value]) => value).map(([term, value]) => [
      h("dt", {}, term), h("dd", { class: term === "Digest" || term === "Space" ? "mono" : null }, value)])),
    h("p", { class: "row" }, h("a", { class: "button", href: `#/try/${encodeURIComponent(found.name)}` }, "Try it on pictures")),
    h("details", {}, h("summary", {}, "Everything that the file says"),
      h("dl", { class: "plain" }, rest.map(([key, value]) => [
        h("dt", {}, key), h("dd", { class: "mono" }, typeof value === "string" ? value : JSON.stringify(value))]))));
}

function members(found) {
  return h("section", {}, h("h2", {}, "Its masks"), h("ul", { class: "masks" }, found.masks.map((mask, i) => h("li", {},
    mask.name ? h("a", { class: "name", href: `#/masks/${encodeURIComponent(mask.name)}` }, mask.name) : h("span", { class: "name" }, "hidden"),
    h("span", { class: "fact" }, i ? `expert ${i}` : "root"),
    mask.version ? h("span", { class: "fact" }, `version ${mask.version}`) : null))),
  h("p", { class: "hint" }, Object.entries(found.modes).map(([mode, size]) => `${mode}: ${whole(size)} components`).join("; ")));
}

function deletion(name, kind, work) {
  const id = newId();
  const button = h("button", { type: "submit", class: "danger", disabled: true }, "Delete for good");
  const input = h("input", { id, autocomplete: "off", spellcheck: "false", oninput: () => {
    button.disabled = input.value !== name;
  } });
  return h("details", { class: "deletion" }, h("summary", {}, `Delete this ${kind.slice(0, -1)}`),
    h("form", { onsubmit: (event) => {
      event.preventDefault();
      if (input.value === name) work();
    } },
    h("p", {}, "All its versions go, and whoever asks for the name gets an error."),
    h("div", { class: "field" }, h("label", { for: id }, "Type the name to delete it"), input), button));
}

async function download(path, name, kind, version) {
  const answer = await call(`${path}/file?version=${version}`);
  const address = URL.createObjectURL(await answer.blob());
  const link = h("a", { href: address, download: `${name}-${version}.${kind === "masks" ? "smn" : "safetensors"}` });
  link.click();
  setTimeout(() => URL.revokeObjectURL(address), 10_000);
}

function inWords(error) {
  if (error.status === 403) return "This key may read, not change. Use an admin's key.";
  if (error.code === "wrong_backbone") return `it is not for this server's backbone: ${error.message}`;
  if (error.code === "invalid_mask") return `it is no mask file, or it is damaged: ${error.message}`;
  return error.message;
}

const words = (n, what) => `${whole(n)} ${what}${n === 1 ? "" : "s"}`;
