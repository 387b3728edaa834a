// The roofline of MLA decode in the browser: its numbers, the curve, then the view.

const MILLION = 1_000_000n;

// Over a million tokens, beside which queries and results are nothing
function step_cost(layer, rows, dtype) {
  const { flops } = kernel_cost(layer, rows, MILLION, 1n, dtype);
  return { flops, bytes: kv_cache_bytes(layer, MILLION, 1n, dtype) };
}

function quantities(layer, rates, heads, s_q, dtype) {
  const rows = heads * s_q;
  const cost = step_cost(layer, rows, dtype);
  const flops = roofline(cost, rates);
  return {
    rows,
    intensity: intensity(cost),
    rows_at_ridge: (ridge(rates) * Number(rows)) / intensity(cost),
    flops,
    bandwidth: flops / intensity(cost),
    microseconds: 1e6 * step_seconds(cost, rates),
  };
}

const rows_of = (number) => `${count(number)} row${number === 1n ? "" : "s"}`;

function sentence({ rows, rows_at_ridge }) {
  const which = Number(rows) < rows_at_ridge ? "Memory" : "Arithmetic";
  return `${which} sets the pace: ${rows_of(rows)}, ${percent(Number(rows) / rows_at_ridge)} of the ${digits(rows_at_ridge)} at the ridge.`;
}

// --- over 1 to 1,024 rows

const TICKS = [1, 4, 16, 64, 256, 1024].map((rows) => [rows, count(rows)]);

const height = (flops) => Math.log10(flops / 1e12);

// Powers of ten between which every GPU stands in every format
function range_of(layer, gpus, dtypes) {
  const lowest = gpus.flatMap(({ rates }) => dtypes.map((dtype) => roofline(step_cost(layer, 1n, dtype), rates)));
  const highest = gpus.map(({ rates }) => rates.flop_per_s);
  return [Math.floor(height(Math.min(...lowest))), Math.ceil(height(Math.max(...highest)))];
}

function drawing(layer, rates, dtype, found, [low, high]) {
  const at = (rows) => roofline(step_cost(layer, rows, dtype), rates);
  const across = scale([0, 10], [PLOT.left, PLOT.right]);
  const x = (rows) => across(Math.log2(Number(rows)));
  const y = scale([low, high], [PLOT.bottom, PLOT.top]);
  const roof = [
    [1, at(1n)],
    [found.rows_at_ridge, rates.flop_per_s],
    [1024, at(1024n)],
  ];
  return [
    ...axes({
      x,
      y,
      x_ticks: TICKS,
      y_ticks: powers(low, high),
      x_name: "rows: heads times new tokens",
      y_name: "at most, TFLOP/s",
    }),
    ...crossing(x(found.rows_at_ridge), digits(found.rows_at_ridge), "ridge"),
    curve(
      roof.map(([rows, flops]) => [x(rows), y(height(flops))]),
      { stroke: "var(--key)" },
    ),
    mark(x(found.rows), y(height(found.flops)), "var(--key)", "present"),
  ];
}

// --- the view

const LABELS = { heads: "heads on this GPU", s_q: "new tokens at a time" };

function render(given) {
  const { model } = given;
  const { gpus, dtypes, layer: dims, limits } = JSON.parse(model.get("data"));
  const layer = exact(dims);
  const shared = {
    gpu: { label: "GPU", choices: gpus.map(({ name }) => name) },
    dtype: { label: "cache", choices: dtypes },
    ...Object.fromEntries(Object.entries(LABELS).map(([name, label]) => [name, { label, limits: limits[name] }])),
  };
  const view = new View(given, "decode-roofline", "Roofline of MLA decode", shared);
  const range = range_of(layer, gpus, dtypes);
  const answers = h("dl");
  const picture = plot();
  const about = h("p", { class: "mla-part-quiet mla-part-about" });
  const row = (dtype) => `${dtype}, ${count(kv_cache_bytes(layer, 1n, 1n, dtype))}`;
  const fields = [
    view.picker({ name: "gpu", label: "GPU", choices: options(gpus.map(({ name, title }) => [name, title])) }),
    view.picker({
      name: "dtype",
      label: "cache, bytes a token",
      choices: options(dtypes.map((dtype) => [dtype, row(dtype)])),
    }),
    view.number_field({ name: "heads", label: LABELS.heads, limits: limits.heads, slider: "log", step: 0.5 }),
    view.number_field({ name: "s_q", label: LABELS.s_q, limits: limits.s_q, slider: "linear" }),
  ];

  function paint() {
    const { title, rates } = gpus.find(({ name }) => name === model.get("gpu"));
    const dtype = model.get("dtype");
    const found = quantities(layer, rates, BigInt(model.get("heads")), BigInt(model.get("s_q")), dtype);
    const tera = (number) => digits(number / 1e12);
    for (const field of fields) field.paint();
    view.say(sentence(found));
    answers.replaceChildren(
      quantity("rows", "rows", found.rows, count),
      quantity("rows at the ridge", "rows_at_ridge", found.rows_at_ridge, digits),
      quantity("FLOP per byte", "intensity", found.intensity, digits),
      quantity("at most, TFLOP/s", "flops", found.flops, tera),
      quantity("at most, TB/s from the cache", "bandwidth", found.bandwidth, tera),
      quantity("at least, µs for a million tokens", "microseconds", found.microseconds, digits),
    );
    picture.replaceChildren(...drawing(layer, rates, dtype, found, range));
    picture.setAttribute("aria-label", `Attainable TFLOP/s against rows, ${title}. ${view.summary.textContent}`);
    about.textContent =
      "Bounds from the datasheet, not measurements. One layer with a latent of 512 and 64 rotary numbers; products in " +
      "fp16 or bf16; the cache is read once, queries and results are left out.";
  }

  const answer = h("div", { class: "mla-part-answer" }, picture, answers);
  return view.show(["gpu", "dtype", "heads", "s_q"], paint, controls(fields), view.note, view.summary, answer, about);
}

export default { render };
