// Pictures: files that were dropped into the page, or the operator's, by id. They stay while the tab is open.
import { all, call, queue } from "./api.js";
import { h } from "./dom.js";

const THUMB_PX = 160;
const MOST_ADDRESSES = 1500;
const fetching = queue(6);
const addresses = new Map(); // of gallery squares, oldest first

export class Dropped {
  constructor(file) {
    this.file = file;
    this.label = null;
    this.words = file.name;
    this.address = URL.createObjectURL(file);
  }

  async square() {
    return this.address;
  }

  async blob() {
    return this.file;
  }
}

export class Shown {
  constructor(item, number) {
    this.id = item.id;
    this.label = item.label;
    this.words = item.label ? `${item.label}, picture ${number + 1}` : `Picture ${number + 1}`;
  }

  async square(wanted) {
    if (addresses.has(this.id)) return addresses.get(this.id);
    const blob = await fetching(async () => (await call(`gallery/${this.id}/image?px=${THUMB_PX}`)).blob(), wanted);
    if (!blob) return null;
    if (!addresses.has(this.id)) addresses.set(this.id, URL.createObjectURL(blob));
    if (addresses.size > MOST_ADDRESSES) {
      const [oldest, address] = addresses.entries().next().value;
      addresses.delete(oldest);
      URL.revokeObjectURL(address);
    }
    return addresses.get(this.id);
  }

  async blob() {
    return (await call(`gallery/${this.id}/image?px=384`)).blob();
  }
}

export const dropped = [];

export function addFiles(files) {
  const pictures = files.filter((file) => file.type.startsWith("image/") || !file.type);
  dropped.push(...pictures.map((file) => new Dropped(file)));
  return files.length - pictures.length;
}

let gallery = null;
export async function galleryPictures() {
  gallery = gallery || (await all("gallery")).map((item, number) => new Shown(item, number));
  return gallery;
}

// Evenly over the list, so that every folder has its part.
export function sample(pictures, most) {
  if (pictures.length <= most) return [...pictures];
  return Array.from({ length: most }, (_, i) => pictures[Math.floor((i * pictures.length) / most)]);
}

// An image that fills itself in; a grey square until then, so that nothing moves.
export function image(picture, { alt = picture.words } = {}) {
  const element = h("img", { alt, class: "square", decoding: "async", width: THUMB_PX, height: THUMB_PX });
  element.onerror = () => element.classList.add("broken");
  picture.square(() => element.isConnected || !element.wasShown).then((address) => {
    if (address) element.src = address;
  }, () => element.classList.add("broken"));
  return element;
}

export function tile(picture, { pressed = null, chosen, note = "" } = {}) {
  return h("button", {
    type: "button", class: "tile", "aria-pressed": pressed === null ? null : String(pressed),
    "aria-label": note ? `${picture.words}, ${note}` : picture.words, onclick: chosen,
  }, image(picture, { alt: "" }), note ? h("span", { class: "note" }, note) : null);
}
