// The dial of chapter 6 in the browser: the formulas first, each named as in Python, then the view.

const dot = (a, b) => a.reduce((sum, value, i) => sum + value * b[i], 0);

function rope_frequencies(width, theta) {
  return Array.from({ length: width / 2 }, (_, i) => theta ** ((-2 * i) / width));
}

// Neighbours are pairs
function rotate(x, position, frequencies) {
  return frequencies.flatMap((frequency, i) => {
    const [cos, sin] = [Math.cos(position * frequency), Math.sin(position * frequency)];
    const [first, second] = [x[2 * i], x[2 * i + 1]];
    return [first * cos - second * sin, second * cos + first * sin];
  });
}

const turned = (x, position, theta) => rotate(x, position, rope_frequencies(x.length, theta));

function quantities(toy, key_position, distance) {
  const { q, w_uk, c, q_rope, k_rope, theta } = toy;
  const query_position = key_position + distance;
  const k = w_uk.map((row) => dot(row, c));
  const absorbed_q = c.map((_, j) => dot(q, w_uk.map((row) => row[j])));
  const rotated = dot(turned(q, query_position, theta), turned(k, key_position, theta));
  const absorbed = dot(absorbed_q, c);
  const rotary = dot(turned(q_rope, query_position, theta), turned(k_rope, key_position, theta));
  return { rotated, absorbed, error: absorbed - rotated, content: absorbed, rotary, decoupled: absorbed + rotary };
}

// --- words

const LABELS = { key_position: "key's position s", distance: "distance t − s" };

const signed = (number) => (Math.abs(number) < 0.005 ? "0.00" : number.toFixed(2).replace("-", "−"));

function sentence(found, key_position, distance) {
  const where = `The query stands at ${key_position + distance}, the key at ${key_position}.`;
  const moved = distance
    ? `Their score is ${signed(found.rotated)}; with the bracket moved across the rotation, ${signed(found.absorbed)}.`
    : `Their score is ${signed(found.rotated)}, and no rotation stands between them.`;
  return `${where} ${moved} Decoupled, it is ${signed(found.decoupled)}.`;
}

// --- drawings

const line = (x1, y1, x2, y2, attributes) => svg("line", { x1, y1, x2, y2, ...attributes });

// One pair of the query and of the key, as hands; all of a row to one scale.
function dial(query, key, longest, frequency, colour) {
  const hand = ([x, y], stroke, part) =>
    line(40, 40, 40 + (34 * x) / longest, 40 - (34 * y) / longest, { stroke, "stroke-width": 3, "stroke-linecap": "round", "data-hand": part });
  return svg(
    "svg",
    { viewBox: "0 0 80 98", "aria-hidden": "true" },
    svg("circle", { cx: 40, cy: 40, r: 37, fill: "none", stroke: "var(--rule)" }),
    hand(query, "var(--query)", "query"),
    hand(key, colour, "key"),
    svg("circle", { cx: 40, cy: 40, r: 2.5, fill: "var(--quiet)" }),
    svg("text", { x: 40, y: 92, "text-anchor": "middle" }, `θ = ${Number(frequency.toPrecision(2))}`),
  );
}

function dials(q, k, query_position, key_position, theta, colour) {
  const frequencies = rope_frequencies(q.length, theta);
  const pairs = (x) => frequencies.map((_, i) => [x[2 * i], x[2 * i + 1]]);
  const [queries, keys] = [pairs(turned(q, query_position, theta)), pairs(turned(k, key_position, theta))];
  const longest = Math.max(...[...queries, ...keys].map(([x, y]) => Math.hypot(x, y)));
  return frequencies.map((frequency, i) => dial(queries[i], keys[i], longest, frequency, colour));
}

const [WIDTH, HEIGHT] = [360, 210];
const [LEFT, RIGHT, TOP, BOTTOM] = [28, 350, 18, 172];
const WAYS = { rotated: "var(--key)", absorbed: "#808080", decoupled: "var(--rope)" };

function plot(toy, distance, found) {
  const [, farthest] = toy.limits.distance;
  const scores = Array.from({ length: 4 * farthest + 1 }, (_, i) => quantities(toy, 0, i / 4));
  const all = scores.flatMap((score) => Object.keys(WAYS).map((way) => score[way]));
  const [low, high] = [Math.floor(Math.min(...all) / 4) * 4, Math.ceil(Math.max(...all) / 4) * 4];
  const x = (tokens) => LEFT + (tokens / farthest) * (RIGHT - LEFT);
  const y = (score) => BOTTOM - ((score - low) / (high - low)) * (BOTTOM - TOP);
  const parts = [];
  for (let tokens = 0; tokens <= farthest; tokens += 10) {
    parts.push(
      line(x(tokens), TOP, x(tokens), BOTTOM, { stroke: "var(--rule)" }),
      svg("text", { x: x(tokens), y: BOTTOM + 15, "text-anchor": "middle" }, tokens),
    );
  }
  for (let score = low; score <= high; score += 4) {
    parts.push(
      line(LEFT, y(score), RIGHT, y(score), { stroke: score ? "var(--rule)" : "var(--quiet)" }),
      svg("text", { x: LEFT - 5, y: y(score) + 4, "text-anchor": "end" }, String(score).replace("-", "−")),
    );
  }
  parts.push(
    svg("text", { x: (LEFT + RIGHT) / 2, y: HEIGHT - 6, "text-anchor": "middle" }, "distance t − s"),
    svg("text", { x: 2, y: 8 }, "score"),
    line(x(distance), TOP, x(distance), BOTTOM, { stroke: "var(--quiet)" }),
  );
  for (const [way, stroke] of Object.entries(WAYS)) {
    const dashes = way === "absorbed" ? { "stroke-dasharray": "6 4" } : {};
    parts.push(curve(scores.map((score, i) => [x(i / 4), y(score[way])]), { stroke, ...dashes }));
  }
  for (const [way, fill] of Object.entries(WAYS)) {
    parts.push(svg("circle", { cx: x(distance), cy: y(found[way]), r: 5, fill, stroke: "var(--paper)", "stroke-width": 2, "data-mark": way }));
  }
  return parts;
}

// --- the view

function render({ model, el }) {
  const toy = JSON.parse(model.get("toy"));
  const prefix = `mla-dial-${++views}`;
  const k = toy.w_uk.map((row) => dot(row, toy.c));
  const note = h("p", { class: "mla-part-note", role: "status" });
  const summary = h("p", { class: "mla-part-summary", "aria-live": "polite" });
  const ordinary = h("div", { class: "mla-dial-row" });
  const rotary = h("div", { class: "mla-dial-row mla-dial-rope" });
  const picture = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img" });
  const scores = h("div", { class: "mla-dial-scores" });
  const fields = Object.entries(LABELS).map(([name, label]) =>
    number_field({ model, note, prefix, name, label, limits: toy.limits[name] }),
  );

  function legend(query, key, colour, rest = "") {
    const hand = (name, stroke) => {
      const element = h("span", {}, name);
      element.style.setProperty("--hand", stroke);
      return element;
    };
    return h("p", { class: "mla-part-quiet" }, hand(query, "var(--query)"), " and ", hand(key, colour), rest);
  }

  function paint() {
    const [key_position, distance] = [model.get("key_position"), model.get("distance")];
    const found = quantities(toy, key_position, distance);
    const row = (label, name) => quantity(label, name, found[name], signed(found[name]));
    const way = (name, ...rows) => h("div", { "data-way": name }, h("dl", {}, ...rows));

    for (const field of fields) field.paint();
    ordinary.replaceChildren(...dials(toy.q, k, key_position + distance, key_position, toy.theta, "var(--key)"));
    rotary.replaceChildren(...dials(toy.q_rope, toy.k_rope, key_position + distance, key_position, toy.theta, "var(--rope)"));
    summary.textContent = sentence(found, key_position, distance);
    scores.replaceChildren(
      way("rotated", row("ordinary, rotated", "rotated")),
      way("absorbed", row("bracket moved", "absorbed"), row("off by", "error")),
      way("decoupled", row("content, absorbed", "content"), row("rotary", "rotary"), row("decoupled, their sum", "decoupled")),
    );
    picture.replaceChildren(...plot(toy, distance, found));
    const said = Object.keys(WAYS).map((name) => `${name} ${signed(found[name])}`).join(", ");
    picture.setAttribute("aria-label", `Scores against the distance; at ${distance}: ${said}.`);
  }

  const root = h(
    "div",
    { class: "mla-part", "data-widget": "rope-dial", role: "group", "aria-label": "Scores with and without decoupling" },
    h("div", { class: "mla-part-controls mla-dial-controls" }, ...fields.map((field) => field.element)),
    note,
    h(
      "div",
      { class: "mla-dial-hands" },
      h("div", {}, legend("query", "key", "var(--key)", ", all pairs rotated"), ordinary),
      h("div", {}, legend("rotary query", "rotary key", "var(--rope)"), rotary),
    ),
    summary,
    h("div", { class: "mla-dial-answer" }, picture, scores),
  );
  return live({ model, el, root, paint, settings: Object.keys(LABELS) });
}

export default { render };
