// Positions in, scores out, in the browser: the scores first, named as in Python, then the view.

const dot = (a, b) => a.reduce((sum, value, i) => sum + value * b[i], 0);

const turned = (x, position, theta) => rotate(x, position, rope_frequencies(x.length, theta));

function quantities(toy, key_position, distance) {
  const { q, w_uk, c, q_rope, k_rope, theta } = toy;
  const query_position = key_position + distance;
  const k = w_uk.map((row) => dot(row, c));
  const absorbed_q = c.map((_, j) =>
    dot(
      q,
      w_uk.map((row) => row[j]),
    ),
  );
  const rotated = dot(turned(q, query_position, theta), turned(k, key_position, theta));
  const absorbed = dot(absorbed_q, c);
  const rotary = dot(turned(q_rope, query_position, theta), turned(k_rope, key_position, theta));
  return { rotated, absorbed, error: absorbed - rotated, content: absorbed, rotary, decoupled: absorbed + rotary };
}

// --- words

const LABELS = { key_position: "key’s position s", distance: "distance t − s" };

const signed = (number) => fixed(number, 3);

function sentence(found, key_position, distance) {
  const where = `The query stands at ${key_position + distance}, the key at ${key_position}.`;
  const moved = distance
    ? `Their score is ${signed(found.rotated)}; with the bracket moved across the rotation, ${signed(found.absorbed)}.`
    : `Their score is ${signed(found.rotated)}, and no rotation stands between them.`;
  return `${where} ${moved} Decoupled, it is ${signed(found.decoupled)}.`;
}

// --- drawings

// One pair of the query and of the key, as hands; all of a row to one scale.
function dial(query, key, longest, frequency, colour) {
  const hand = ([x, y], stroke, part) =>
    line(40, 40, 40 + (34 * x) / longest, 40 - (34 * y) / longest, {
      stroke,
      "stroke-width": 3,
      "stroke-linecap": "round",
      "data-hand": part,
      "data-angle": Math.atan2(y, x),
    });
  return svg(
    "svg",
    { viewBox: "0 0 80 98", "aria-hidden": "true" },
    svg("circle", { cx: 40, cy: 40, r: 37, fill: "none", stroke: "var(--rule)" }),
    hand(query, "var(--query)", "query"),
    hand(key, colour, "key"),
    svg("circle", { cx: 40, cy: 40, r: 2.5, fill: "var(--quiet)" }),
    svg("circle", { cx: 40, cy: 40, r: 37, fill: "transparent", "data-grip": "" }),
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

const WAYS = { rotated: "var(--key)", absorbed: "var(--bar)", decoupled: "var(--rope)" };

// A number at every so many from low to high, as a tick
function ticks(low, high, step) {
  const values = Array.from({ length: Math.floor((high - low) / step) + 1 }, (_, i) => low + i * step);
  return values.map((value) => [value, String(value).replace("-", "−")]);
}

function drawing(toy, distance, found) {
  const [, farthest] = toy.limits.distance;
  const scores = Array.from({ length: 4 * farthest + 1 }, (_, i) => quantities(toy, 0, i / 4));
  const all = scores.flatMap((score) => Object.keys(WAYS).map((way) => score[way]));
  const [low, high] = [Math.floor(Math.min(...all) / 4) * 4, Math.ceil(Math.max(...all) / 4) * 4];
  const x = scale([0, farthest], [PLOT.left, PLOT.right]);
  const y = scale([low, high], [PLOT.bottom, PLOT.top]);
  const names = { x_name: "distance t − s", y_name: "score", base: 0 };
  const lines = Object.entries(WAYS).map(([way, stroke]) => {
    const dashes = way === "absorbed" ? { "stroke-dasharray": "6 4" } : {};
    return curve(
      scores.map((score, i) => [x(i / 4), y(score[way])]),
      { stroke, ...dashes },
    );
  });
  return [
    ...axes({ x, y, x_ticks: ticks(0, farthest, 10), y_ticks: ticks(low, high, 4), ...names }),
    line(x(distance), PLOT.top, x(distance), PLOT.bottom, { stroke: "var(--quiet)" }),
    ...lines,
    ...Object.entries(WAYS).map(([way, fill]) => mark(x(distance), y(found[way]), fill, way)),
  ];
}

// --- hands that can be dragged, the one that is nearest: a turn by an angle is so many positions, by the frequency

const PARTS = { query: "distance", key: "key_position" };
const angle_at = ({ clientX, clientY }, [x, y]) => Math.atan2(y - clientY, clientX - x);
const whole_turns = (angle) => angle - 2 * Math.PI * Math.round(angle / (2 * Math.PI));

function draggable(row, frequencies, read, take) {
  let held = null;
  row.addEventListener("pointerdown", (event) => {
    if (event.target.dataset?.grip === undefined) return;
    event.preventDefault();
    row.setPointerCapture(event.pointerId);
    const place = [...row.children].findIndex((dial) => dial.contains(event.target));
    const { left, top, width } = event.target.getBoundingClientRect();
    const middle = [left + width / 2, top + width / 2];
    const angle = angle_at(event, middle);
    const away = ({ dataset }) => Math.abs(whole_turns(Number(dataset.angle) - angle));
    const [nearest] = [...row.children[place].querySelectorAll("[data-hand]")].sort((a, b) => away(a) - away(b));
    const name = PARTS[nearest.dataset.hand];
    held = { name, middle, angle, frequency: frequencies[place], exact: read(name) };
  });
  row.addEventListener("pointermove", (event) => {
    if (!held) return;
    const angle = angle_at(event, held.middle);
    held.exact += whole_turns(angle - held.angle) / held.frequency;
    held.angle = angle;
    take(held.name, Math.round(held.exact));
  });
  for (const end of ["pointerup", "pointercancel"]) row.addEventListener(end, () => (held = null));
}

// --- the view

const PACE = 90; // milliseconds of a distance in a sweep

function render(given) {
  const { model } = given;
  const toy = JSON.parse(model.get("data"));
  const k = toy.w_uk.map((row) => dot(row, toy.c));
  const shared = Object.fromEntries(
    Object.entries(LABELS).map(([name, label]) => [name, { label, limits: toy.limits[name] }]),
  );
  const view = new View(given, "rope-dial", "Scores with and without decoupling", shared);
  const player = view.player({
    name: "distance",
    last: () => toy.limits.distance[1],
    pace: PACE,
    words: { play: "Sweep the distance", pause: "Pause" },
  });
  const take = (name, value, said = "") => {
    player.stop();
    const [lowest, highest] = toy.limits[name];
    view.set({ [name]: Math.min(Math.max(value, lowest), highest) }, said);
  };
  const ordinary = h("div", { class: "mla-dial-row" });
  const rotary = h("div", { class: "mla-dial-row mla-dial-rope" });
  const picture = plot();
  const scores = h("div", { class: "mla-dial-scores" });
  const fields = Object.entries(LABELS).map(([name, label]) =>
    view.number_field({
      name,
      label,
      limits: toy.limits[name],
      slider: "linear",
      take: (value, said) => take(name, value, said),
    }),
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
    const row = (label, name) => quantity(label, name, found[name], signed);
    const way = (name, ...rows) => h("div", { "data-way": name }, h("dl", {}, ...rows));

    for (const field of fields) field.paint();
    ordinary.replaceChildren(...dials(toy.q, k, key_position + distance, key_position, toy.theta, "var(--key)"));
    rotary.replaceChildren(
      ...dials(toy.q_rope, toy.k_rope, key_position + distance, key_position, toy.theta, "var(--rope)"),
    );
    view.say(sentence(found, key_position, distance));
    scores.replaceChildren(
      way("rotated", row("ordinary, rotated", "rotated")),
      way("absorbed", row("bracket moved", "absorbed"), row("off by", "error")),
      way(
        "decoupled",
        row("content, absorbed", "content"),
        row("rotary", "rotary"),
        row("decoupled, their sum", "decoupled"),
      ),
    );
    picture.replaceChildren(...drawing(toy, distance, found));
    const said = Object.keys(WAYS)
      .map((name) => `${name} ${signed(found[name])}`)
      .join(", ");
    picture.setAttribute("aria-label", `Scores against the distance; at ${distance}: ${said}.`);
  }

  for (const [row, vector] of [
    [ordinary, toy.q],
    [rotary, toy.q_rope],
  ]) {
    draggable(row, rope_frequencies(vector.length, toy.theta), (name) => model.get(name), take);
  }
  const hands = h(
    "div",
    { class: "mla-dial-hands" },
    h("div", {}, legend("query", "key", "var(--key)", ", all pairs rotated; drag a hand"), ordinary),
    h("div", {}, legend("rotary query", "rotary key", "var(--rope)"), rotary),
  );
  const answer = h("div", { class: "mla-part-answer" }, picture, scores);
  const forget = view.show(
    Object.keys(LABELS),
    paint,
    controls([...fields, player]),
    view.note,
    hands,
    view.summary,
    answer,
  );
  return () => {
    player.stop();
    forget();
  };
}

export default { render };
