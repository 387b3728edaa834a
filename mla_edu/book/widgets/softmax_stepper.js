// The stepper of chapter 13 in the browser: the recurrence first, named as in Python, then the view.

function quantities({ scores, values }, tile, step) {
  let [m, l, a, shrink, keys] = [-Infinity, 0, 0, 1, 0];
  while (keys < Math.min(step * tile, scores.length)) {
    const read = scores.slice(keys, keys + tile);
    const larger = Math.max(m, ...read);
    const weights = read.map((score) => Math.exp(score - larger));
    shrink = Math.exp(m - larger);
    l = weights.reduce((sum, weight) => sum + weight, l * shrink);
    a = weights.reduce((sum, weight, i) => sum + weight * values[keys + i], a * shrink);
    [m, keys] = [larger, keys + read.length];
  }
  return { keys, m, shrink, l, a, out: a / l, lse: m + Math.log(l) };
}

// --- words

const written = (number) =>
  Number.isNaN(number) ? "–" : Number.isFinite(number) ? number.toFixed(3).replace("-", "−") : "−∞";

function sentence({ keys, m, shrink }, before, total) {
  if (!keys) return "Nothing is read yet: the empty state. Move the slider to read the first tile.";
  const end = keys === total ? " All keys are read." : "";
  if (!before.keys) return `The first tile sets m to ${written(m)}. There was nothing yet to shrink.${end}`;
  if (m === before.m) return `No score of this tile exceeds m. The past stays as it is, and the tile's weights are added.${end}`;
  return `A new maximum: m rises from ${written(before.m)} to ${written(m)}, and all that was summed shrinks by a factor of ${written(shrink)}.${end}`;
}

// --- the drawing: scores above, the weights e^(s - m) below

const [WIDTH, HEIGHT] = [360, 242];
const [LEFT, RIGHT] = [30, 356];
const SCORE = { top: 18, bottom: 112, low: -2, high: 4 };
const WEIGHT = { top: 145, bottom: 221, low: 0, high: 1 };

function drawing({ scores }, before, found) {
  const width = (RIGHT - LEFT) / scores.length;
  const x = (key) => LEFT + (key + 0.5) * width;
  const y = (value, { top, bottom, low, high }) => bottom - ((value - low) / (high - low)) * (bottom - top);
  const parts = [];
  for (const [panel, marks] of [[SCORE, [-2, 0, 2, 4]], [WEIGHT, [0, 0.5, 1]]]) {
    for (const mark of marks) {
      parts.push(
        svg("line", { x1: LEFT, x2: RIGHT, y1: y(mark, panel), y2: y(mark, panel), stroke: "var(--rule)" }),
        svg("text", { x: LEFT - 5, y: y(mark, panel) + 4, "text-anchor": "end" }, String(mark).replace("-", "−")),
      );
    }
  }
  parts.push(
    svg("text", { x: 2, y: 9 }, "scores, and the maximum so far"),
    svg("text", { x: 2, y: 136 }, "weights so far, which add up to l"),
    svg("text", { x: (LEFT + RIGHT) / 2, y: HEIGHT - 4, "text-anchor": "middle" }, `keys 1 to ${scores.length}`),
  );
  if (found.keys > before.keys) {
    const tile = { x: LEFT + before.keys * width, width: (found.keys - before.keys) * width };
    parts.push(svg("rect", { ...tile, y: SCORE.top, height: WEIGHT.bottom - SCORE.top, fill: "var(--accent)", opacity: 0.14, "data-mark": "tile" }));
  }
  scores.forEach((score, key) => {
    const read = key < found.keys;
    const fill = read ? (key < before.keys ? "var(--quiet)" : "var(--accent)") : "none";
    parts.push(svg("circle", { cx: x(key), cy: y(score, SCORE), r: 3.5, fill, stroke: read ? "none" : "var(--quiet)" }));
    if (!read) return;
    const top = y(Math.exp(score - found.m), WEIGHT);
    parts.push(svg("rect", { x: x(key) - 0.36 * width, width: 0.72 * width, y: top, height: WEIGHT.bottom - top, fill, "data-weight": key }));
  });
  if (found.keys) {
    const level = y(found.m, SCORE);
    parts.push(svg("line", { x1: LEFT, x2: LEFT + found.keys * width, y1: level, y2: level, stroke: "var(--ink)", "stroke-width": 1.5, "data-mark": "maximum" }));
  }
  return parts;
}

// --- the view

function render({ model, el }) {
  const row = JSON.parse(model.get("row"));
  const prefix = `mla-stepper-${++views}`;
  const note = h("p", { class: "mla-part-note", role: "status" });
  const summary = h("p", { class: "mla-part-summary", "aria-live": "polite" });
  const picture = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img" });
  const numbers = h("dl", { class: "mla-stepper-numbers" });
  const tile_field = number_field({ model, note, prefix, name: "tile", label: "keys in a tile", limits: row.limits.tile });
  const step_place = h("div");
  let [step_field, tiles] = [null, 0];

  // With another tile there are more or fewer steps.
  function set_tiles(number) {
    tiles = number;
    step_field = number_field({ model, note, prefix, name: "step", label: `tiles read, of ${tiles}`, limits: [0, tiles] });
    step_place.replaceChildren(step_field.element);
    if (model.get("step") > tiles) {
      model.set("step", tiles);
      model.save_changes();
    }
  }

  function paint() {
    const tile = model.get("tile");
    const needed = Math.ceil(row.scores.length / tile);
    if (needed !== tiles) set_tiles(needed);
    const step = Math.min(model.get("step"), tiles);
    const [before, found] = [quantities(row, tile, Math.max(step - 1, 0)), quantities(row, tile, step)];
    const shown = (label, name) => quantity(label, name, found[name], written(found[name]));

    tile_field.paint();
    step_field.paint();
    summary.textContent = sentence(found, before, row.scores.length);
    picture.replaceChildren(...drawing(row, before, found));
    picture.setAttribute("aria-label", `${found.keys} of ${row.scores.length} keys read; m ${written(found.m)}, l ${written(found.l)}.`);
    numbers.replaceChildren(
      quantity("keys read", "keys", found.keys, count(found.keys)),
      shown("maximum m", "m"),
      shown("past shrunk by", "shrink"),
      shown("sum l", "l"),
      shown("accumulator a", "a"),
      shown("output a / l", "out"),
      shown("log-sum-exp", "lse"),
    );
  }

  const root = h(
    "div",
    { class: "mla-part", "data-widget": "softmax-stepper", role: "group", "aria-label": "The online softmax, tile by tile" },
    h("div", { class: "mla-part-controls mla-stepper-controls" }, tile_field.element, step_place),
    note,
    summary,
    h("div", { class: "mla-stepper-answer" }, picture, numbers),
  );
  return live({ model, el, root, paint, settings: ["tile", "step"] });
}

export default { render };
