// Maps of many pictures: asked of the server, in steps while it embeds; of dropped pictures by their vectors.
import { send } from "./api.js";
import { queryOf } from "./parts.js";
import { Dropped } from "./pictures.js";
import { asText, embed } from "./vectors.js";

// {pictures, places, clusters, neighbours, method}; pictures that cannot be read are left out.
export async function mapOf(pictures, space, { neighbours, clusters = 8, told, stopped }) {
  const more = { clusters, neighbours: Math.max(1, Math.min(neighbours, pictures.length - 1)) };
  if (pictures[0] instanceof Dropped) {
    const { rows } = await embed(pictures, space, told);
    const kept = pictures.filter((_, i) => rows[i]);
    const answer = await send("POST", "map", { vectors: rows.filter(Boolean).map(asText), ...more });
    return { pictures: kept, ...(await answer.json()) };
  }
  const query = queryOf(space);
  const byId = new Map(pictures.map((picture) => [picture.id, picture]));
  while (!stopped()) {
    const answer = await send("POST", `map${query ? `?${query}` : ""}`, { ids: [...byId.keys()], ...more });
    const found = await answer.json();
    if (answer.status !== 202) return { pictures: found.ids.map((id) => byId.get(id)), ...found };
    told(found.embedded, found.of);
  }
  return null;
}

// Both maps of the same pictures, in one order.
export async function twoMaps(pictures, a, b, options) {
  const first = await mapOf(pictures, a, options("first"));
  if (!first) return null;
  const second = await mapOf(first.pictures, b, options("second"));
  if (!second) return null;
  return second.pictures.length === first.pictures.length
    ? { pictures: first.pictures, a: first, b: second }
    : twoMaps(second.pictures, a, b, options); // one turned out to be unreadable meanwhile
}

// Where another picture stands among the neighbours of one, 0 the nearest; Infinity where it is not among them.
export function ranksOf(neighbours) {
  return neighbours.map((row) => new Map(row.map((other, rank) => [other, rank])));
}
export const rank = (ranks, i, j) => ranks[i].get(j) ?? Infinity;
