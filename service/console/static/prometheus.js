// Prometheus' text, as far as the console reads it: {name: {labels as written: value}}.
export function parse(text) {
  const found = {};
  for (const line of text.split("\n")) {
    const match = /^([a-zA-Z_:][\w:]*)(?:\{(.*)\})? (\S+)/.exec(line);
    if (!match) continue;
    (found[match[1]] = found[match[1]] || {})[match[2] || ""] = Number(match[3]);
  }
  return found;
}

export const total = (metrics, name, wanted = "") =>
  Object.entries(metrics[name] || {}).reduce((sum, [labels, value]) => (labels.includes(wanted) ? sum + value : sum), 0);
