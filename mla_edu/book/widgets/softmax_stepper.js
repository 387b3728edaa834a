// The online softmax, tile by tile, in the browser: the recurrence first, named as in Python, then the view.

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

const written = (number) => fixed(number, 3);

function sentence({ keys, m, shrink }, before, total) {
  if (!keys) return "Nothing is read yet: the empty state. Press Next to read the first tile.";
  const end = keys === total ? " All keys are read." : "";
  if (!before.keys) return `The first tile sets m to ${written(m)}. There was nothing yet to shrink.${end}`;
  if (m === before.m)
    return `No score of this tile exceeds m. The past stays as it is, and the tile’s weights are added.${end}`;
  return `A new maximum: m rises from ${written(before.m)} to ${written(m)}, and all that was summed shrinks by a factor of ${written(shrink)}.${end}`;
}

// --- the drawing: scores above, the weights e^(s - m) below

const [WIDTH, HEIGHT] = [360, 242];
const [LEFT, RIGHT] = [30, 356];
const SCORE = { y: scale([-2, 4], [112, 18]), marks: [-2, 0, 2, 4] };
const WEIGHT = { y: scale([0, 1], [221, 145]), marks: [0, 0.5, 1] };

function drawing({ scores }, before, found) {
  const width = (RIGHT - LEFT) / scores.length;
  const x = (key) => LEFT + (key + 0.5) * width;
  const parts = [SCORE, WEIGHT].flatMap(({ y, marks }) =>
    marks.flatMap((mark) => [
      line(LEFT, y(mark), RIGHT, y(mark), { stroke: "var(--rule)" }),
      svg("text", { x: LEFT - 5, y: y(mark) + 4, "text-anchor": "end" }, String(mark).replace("-", "−")),
    ]),
  );
  parts.push(
    svg("text", { x: 2, y: 9 }, "scores, and the maximum so far"),
    svg("text", { x: 2, y: 136 }, "weights so far, which add up to l; dashed: before the tile"),
    svg("text", { x: (LEFT + RIGHT) / 2, y: HEIGHT - 4, "text-anchor": "middle" }, `keys 1 to ${scores.length}`),
  );
  if (found.keys > before.keys) {
    const tile = { x: LEFT + before.keys * width, width: (found.keys - before.keys) * width };
    const shade = { fill: "var(--accent)", opacity: 0.14, "data-mark": "tile" };
    for (const { y, marks } of [SCORE, WEIGHT]) {
      const [bottom, top] = [y(marks[0]), y(marks.at(-1))];
      parts.push(svg("rect", { ...tile, y: top, height: bottom - top, ...shade }));
    }
  }
  scores.forEach((score, key) => {
    const read = key < found.keys;
    const fill = read ? (key < before.keys ? "var(--quiet)" : "var(--accent)") : "none";
    parts.push(svg("circle", { cx: x(key), cy: SCORE.y(score), r: 3.5, fill, stroke: read ? "none" : "var(--quiet)" }));
    if (!read) return;
    // What it weighed before the tile, where the tile has shrunk it
    if (key < before.keys && before.m < found.m) {
      const height = WEIGHT.y(0) - WEIGHT.y(Math.exp(score - before.m));
      const edge = { fill: "none", stroke: "var(--quiet)", "stroke-dasharray": "2 2", "data-before": key };
      parts.push(
        svg("rect", { x: x(key) - 0.36 * width, width: 0.72 * width, y: WEIGHT.y(0) - height, height, ...edge }),
      );
    }
    const top = WEIGHT.y(Math.exp(score - found.m));
    parts.push(
      svg("rect", {
        x: x(key) - 0.36 * width,
        width: 0.72 * width,
        y: top,
        height: WEIGHT.y(0) - top,
        fill,
        "data-weight": key,
      }),
    );
  });
  if (found.keys) {
    const level = SCORE.y(found.m);
    parts.push(
      line(LEFT, level, LEFT + found.keys * width, level, {
        stroke: "var(--ink)",
        "stroke-width": 1.5,
        "data-mark": "maximum",
      }),
    );
  }
  return parts;
}

// --- the view

const PACE = 1400; // milliseconds that a tile stays while the row plays

function render(given) {
  const { model } = given;
  const row = JSON.parse(model.get("data"));
  const shared = {
    tile: { label: "keys in a tile", limits: row.limits.tile },
    step: { label: "tiles read", limits: row.limits.step },
  };
  const view = new View(given, "softmax-stepper", "The online softmax, tile by tile", shared);
  const player = view.player({ name: "step", last: () => tiles, pace: PACE, more: ["previous", "next"] });
  const picture = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img" });
  const numbers = h("dl");
  const tile_field = view.number_field({
    name: "tile",
    label: "keys in a tile",
    limits: row.limits.tile,
    slider: "linear",
  });
  const step_place = h("div");
  let [step_field, tiles] = [null, 0];

  // With another tile there are more or fewer steps.
  function set_tiles(number) {
    tiles = number;
    step_field = view.number_field({
      name: "step",
      label: `tiles read, of ${tiles}`,
      limits: [0, tiles],
      slider: "linear",
      take(step, said) {
        player.stop();
        view.set({ step }, said);
      },
    });
    step_place.replaceChildren(step_field.element);
    if (model.get("step") > tiles) view.set({ step: tiles }, view.note.textContent);
  }

  function paint() {
    const tile = model.get("tile");
    const needed = Math.ceil(row.scores.length / tile);
    if (needed !== tiles) set_tiles(needed);
    const step = Math.min(model.get("step"), tiles);
    const [before, found] = [quantities(row, tile, Math.max(step - 1, 0)), quantities(row, tile, step)];

    tile_field.paint();
    step_field.paint();
    view.say(sentence(found, before, row.scores.length));
    picture.replaceChildren(...drawing(row, before, found));
    picture.setAttribute(
      "aria-label",
      `${found.keys} of ${row.scores.length} keys read; m ${written(found.m)}, l ${written(found.l)}.`,
    );
    numbers.replaceChildren(
      quantity("keys read", "keys", found.keys, count),
      quantity("maximum m", "m", found.m, written),
      quantity("past shrunk by", "shrink", found.shrink, written),
      quantity("sum l", "l", found.l, written),
      quantity("accumulator a", "a", found.a, written),
      quantity("output a / l", "out", found.out, written),
      quantity("log-sum-exp", "lse", found.lse, written),
    );
  }

  const fields = controls([tile_field, { element: step_place }, player]);
  const answer = h("div", { class: "mla-part-answer" }, picture, numbers);
  const forget = view.show(["tile", "step"], paint, fields, view.note, view.summary, answer);
  return () => {
    player.stop();
    forget();
  };
}

export default { render };
