// Vectors: embedding through /embed, cosine, neighbours.
import { call, info } from "./api.js";
import { queryOf } from "./parts.js";

// Float32 rows of an .npy file, which the server writes in C order and little-endian.
function rowsOf(buffer) {
  const view = new DataView(buffer);
  const start = 10 + view.getUint16(8, true);
  const head = new TextDecoder("latin1").decode(new Uint8Array(buffer, 10, start - 10));
  const [, n, d] = /'shape': \((\d+), (\d+)\)/.exec(head);
  const all = new Float32Array(buffer.slice(start));
  return Array.from({ length: Number(n) }, (_, i) => all.subarray(i * d, (i + 1) * d));
}

// {rows, space, warnings}: unit vectors of the pictures, a batch at a time. A picture that is refused has null.
export async function embed(pictures, space, told = () => {}) {
  const { limits } = await info();
  const size = Math.min(16, limits.max_images);
  const query = queryOf(space);
  const rows = [];
  let said = null;
  let refused = null;
  const warnings = new Set();
  const post = async (batch) => {
    const body = new FormData();
    for (const picture of batch) body.append("image", await picture.blob(), "image");
    const answer = await call(`embed?normalize=true${query ? `&${query}` : ""}`,
      { method: "POST", body, headers: { Accept: "application/x-npy" } });
    const space_ = answer.headers.get("X-SMN-Space");
    if (said !== null && space_ !== null && said !== space_) {
      throw new Error("The mask changed while the pictures were embedded. Compare again.");
    }
    said = space_ ?? said;
    if (answer.headers.get("X-SMN-Warnings")) warnings.add(answer.headers.get("X-SMN-Warnings"));
    return rowsOf(await answer.arrayBuffer());
  };
  for (let start = 0; start < pictures.length; start += size) {
    const batch = pictures.slice(start, start + size);
    try {
      rows.push(...(await post(batch)));
    } catch (error) {
      if (error.status !== 422 && error.status !== 413) throw error;
      for (const picture of batch) { // one of them is no picture: find it
        try {
          rows.push(...(await post([picture])));
        } catch (alone) {
          if (alone.status !== 422 && alone.status !== 413) throw alone;
          refused = refused || `${picture.words}: ${alone.message}`;
          rows.push(null);
        }
      }
    }
    told(Math.min(start + size, pictures.length), pictures.length);
  }
  return { rows, space: said, warnings: [...warnings], refused };
}

export function dot(a, b) {
  let sum = 0;
  for (let i = 0; i < a.length; i++) sum += a[i] * b[i];
  return sum;
}

// The others, nearest first: [{index, similarity}].
export function near(rows, index) {
  const found = [];
  for (let i = 0; i < rows.length; i++) if (i !== index) found.push({ index: i, similarity: dot(rows[index], rows[i]) });
  return found.sort((a, b) => b.similarity - a.similarity || a.index - b.index);
}

export function asText(row) {
  const bytes = new Uint8Array(row.buffer, row.byteOffset, row.byteLength);
  let text = "";
  for (let i = 0; i < bytes.length; i += 4096) text += String.fromCharCode(...bytes.subarray(i, i + 4096));
  return btoa(text);
}
