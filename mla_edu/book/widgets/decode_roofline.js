// The roofline of chapter 12 in the browser: the formulas first, named as in Python, then the view.

const MILLION = 1e6;

function quantities({ peak, bandwidth }, token_bytes, flops_per_row, heads, s_q) {
  const rows = heads * s_q;
  const [intensity, ridge] = [(rows * flops_per_row) / token_bytes, peak / bandwidth];
  const flops = Math.min(peak, intensity * bandwidth);
  return {
    rows,
    intensity,
    ridge,
    rows_at_ridge: (ridge * token_bytes) / flops_per_row,
    flops,
    bandwidth: flops / intensity,
    microseconds: (1e6 * MILLION * rows * flops_per_row) / flops,
  };
}

// --- words

const LABELS = { heads: "heads on this GPU", s_q: "new tokens at a time" };

const digits = (number) => (number >= 99.5 ? count(Math.round(number)) : number.toPrecision(number >= 9.95 ? 3 : 2));
const rows_of = (number) => `${count(number)} row${number === 1 ? "" : "s"}`;

function sentence({ rows, rows_at_ridge }) {
  const share = `${digits((100 * rows) / rows_at_ridge)}% of the ${digits(rows_at_ridge)} at the ridge`;
  return rows < rows_at_ridge
    ? `Memory sets the pace: ${rows_of(rows)}, ${share}.`
    : `Arithmetic sets the pace: ${rows_of(rows)}, ${share}.`;
}

// --- the roofline, 360 units wide, over 1 to 1,024 rows

const [WIDTH, HEIGHT] = [360, 210];
const [LEFT, RIGHT, TOP, BOTTOM] = [40, 340, 22, 172];
const MOST_ROWS = 1024;

function plot(found, at, fastest) {
  const low = Math.floor(Math.log10(at(1) / 1e12));
  const high = Math.ceil(Math.log10(fastest / 1e12));
  const x = (rows) => LEFT + (Math.log2(rows) / Math.log2(MOST_ROWS)) * (RIGHT - LEFT);
  const y = (flops) => BOTTOM - ((Math.log10(flops / 1e12) - low) / (high - low)) * (BOTTOM - TOP);
  const line = (x1, y1, x2, y2, attributes) => svg("line", { x1, y1, x2, y2, stroke: "var(--rule)", "stroke-width": 1, ...attributes });
  const parts = [];
  for (const rows of [1, 4, 16, 64, 256, 1024]) {
    parts.push(line(x(rows), TOP, x(rows), BOTTOM), svg("text", { x: x(rows), y: BOTTOM + 15, "text-anchor": "middle" }, count(rows)));
  }
  for (let power = low; power <= high; power++) {
    const label = power < 0 ? (10 ** power).toFixed(-power) : count(10 ** power);
    const place = y(10 ** power * 1e12);
    parts.push(line(LEFT, place, RIGHT, place), svg("text", { x: LEFT - 5, y: place + 4, "text-anchor": "end" }, label));
  }
  const ridge = x(found.rows_at_ridge);
  parts.push(
    svg("text", { x: (LEFT + RIGHT) / 2, y: HEIGHT - 6, "text-anchor": "middle" }, "rows: heads times new tokens"),
    svg("text", { x: 2, y: 10 }, "at most, TFLOP/s"),
    line(ridge, TOP, ridge, BOTTOM, { stroke: "var(--quiet)", "stroke-dasharray": "4 3", "data-mark": "ridge" }),
    svg("text", { x: ridge + 5, y: BOTTOM - 6 }, digits(found.rows_at_ridge)),
    curve([1, found.rows_at_ridge, MOST_ROWS].map((rows) => [x(rows), y(at(rows))]), { stroke: "var(--key)" }),
    svg("circle", { cx: x(found.rows), cy: y(found.flops), r: 5, fill: "var(--key)", stroke: "var(--paper)", "stroke-width": 2, "data-mark": "present" }),
  );
  return parts;
}

// --- the view

function render({ model, el }) {
  const { gpus, token_bytes, flops_per_row, limits } = JSON.parse(model.get("datasheets"));
  const prefix = `mla-roof-${++views}`;
  const note = h("p", { class: "mla-part-note", role: "status" });
  const summary = h("p", { class: "mla-part-summary", "aria-live": "polite" });
  const answers = h("dl");
  const picture = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img" });
  const about = h("p", { class: "mla-part-quiet mla-roof-about" });

  function picker(name, label, choices) {
    const options = choices.map(([value, text]) => h("option", { value }, text));
    const select = h("select", { name, id: `${prefix}-${name}` }, ...options);
    select.addEventListener("change", () => {
      model.set(name, select.value);
      model.save_changes();
    });
    const element = h("div", { class: "mla-part-field" }, h("label", { for: select.id }, label), select);
    return { element, paint: () => (select.value = model.get(name)) };
  }
  const fields = [
    picker("gpu", "GPU", gpus.map(({ name, title }) => [name, title])),
    picker("dtype", "cache, bytes a token", Object.entries(token_bytes).map(([name, size]) => [name, `${name}, ${count(size)}`])),
    ...Object.entries(LABELS).map(([name, label]) =>
      number_field({ model, note, prefix, name, label, limits: limits[name], log: name === "heads", step: 0.5 }),
    ),
  ];

  function paint() {
    const gpu = gpus.find(({ name }) => name === model.get("gpu"));
    const answer = (rows) => quantities(gpu, token_bytes[model.get("dtype")], flops_per_row, rows, 1);
    const found = quantities(gpu, token_bytes[model.get("dtype")], flops_per_row, model.get("heads"), model.get("s_q"));
    for (const field of fields) field.paint();
    summary.textContent = sentence(found);
    answers.replaceChildren(
      quantity("rows", "rows", found.rows, count(found.rows)),
      quantity("rows at the ridge", "rows_at_ridge", found.rows_at_ridge, digits(found.rows_at_ridge)),
      quantity("FLOP per byte", "intensity", found.intensity, digits(found.intensity)),
      quantity("at most, TFLOP/s", "flops", found.flops, digits(found.flops / 1e12)),
      quantity("at most, TB/s from the cache", "bandwidth", found.bandwidth, digits(found.bandwidth / 1e12)),
      quantity("at least, µs for a million tokens", "microseconds", found.microseconds, digits(found.microseconds)),
    );
    picture.replaceChildren(...plot(found, (rows) => answer(rows).flops, gpu.peak));
    picture.setAttribute("aria-label", `Attainable TFLOP/s against rows, ${gpu.title}. ${summary.textContent}`);
    about.textContent =
      "Bounds from the datasheet, not measurements. One layer with a latent of 512 and 64 rotary numbers; products in 16 bit; " +
      "the cache is read once, queries and results are left out.";
  }

  const root = h(
    "div",
    { class: "mla-part", "data-widget": "decode-roofline", role: "group", "aria-label": "Roofline of MLA decode" },
    h("div", { class: "mla-part-controls mla-roof-controls" }, ...fields.map((field) => field.element)),
    note,
    summary,
    h("div", { class: "mla-roof-answer" }, picture, answers),
    about,
  );
  return live({ model, el, root, paint, settings: ["gpu", "dtype", ...Object.keys(LABELS)] });
}

export default { render };
