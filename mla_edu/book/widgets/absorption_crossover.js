// The crossover of chapter 5 in the browser: the formulas first, each named as in Python, then the view.
// Counts are BigInt, so that they are exact however large.

function attention_macs(config, num_new, num_keys) {
  const { kv_lora_rank, qk_nope_head_dim, qk_rope_head_dim, v_head_dim } = config;
  const up = kv_lora_rank * (qk_nope_head_dim + v_head_dim);
  return {
    expanded: num_keys * up + num_new * num_keys * (qk_nope_head_dim + qk_rope_head_dim + v_head_dim),
    absorbed: num_new * up + num_new * num_keys * (2n * kv_lora_rank + qk_rope_head_dim),
  };
}

function crossover(config, num_cached) {
  const up = config.qk_nope_head_dim + config.v_head_dim;
  const gap = 2n * config.kv_lora_rank - up;
  if (gap <= 0n) return null;
  let [most, above] = [0n, (config.kv_lora_rank * up) / gap + 1n]; // absorbed costs no more; it costs more
  while (above - most > 1n) {
    const middle = (most + above) / 2n;
    const macs = attention_macs(config, middle, num_cached + middle);
    if (macs.absorbed > macs.expanded) above = middle;
    else most = middle;
  }
  return most;
}

const ratio = (macs) => Number(macs.absorbed) / Number(macs.expanded);

function quantities(config, new_tokens, cached_tokens) {
  const macs = attention_macs(config, new_tokens, cached_tokens + new_tokens);
  return {
    expanded_macs: config.num_attention_heads * macs.expanded,
    absorbed_macs: config.num_attention_heads * macs.absorbed,
    ratio: ratio(macs),
    crossover: crossover(config, cached_tokens),
  };
}

// --- words

const LABELS = {
  heads: "heads",
  kv_lora_rank: "width of the latent",
  new_tokens: "new tokens",
  cached_tokens: "cached tokens",
};

// As 4.30 × 10⁹ where it is long
function short(number) {
  if (number < 1_000_000n) return count(number);
  const [digits, exponent] = Number(number).toExponential(2).split("e+");
  return `${digits} × 10${[...exponent].map((digit) => "⁰¹²³⁴⁵⁶⁷⁸⁹"[digit]).join("")}`;
}

function times(ratio) {
  const more = Math.max(ratio, 1 / ratio);
  return more >= 99.95 ? more.toFixed(0) : more.toFixed(more >= 9.995 ? 1 : 2);
}

const tokens = (number, kind) => `${count(number)} ${kind} token${number === 1n ? "" : "s"}`;

function sentence(found, cached_tokens) {
  const compare =
    found.expanded_macs === found.absorbed_macs
      ? "Both cost the same here."
      : `${found.ratio < 1 ? "Expanded" : "Absorbed"} costs ${times(found.ratio)} times as much here.`;
  if (found.crossover === null) return `${compare} With a latent this narrow absorbed never costs more.`;
  const cached = cached_tokens ? `Behind ${tokens(cached_tokens, "cached")}` : "Over an empty cache";
  return found.crossover
    ? `${compare} ${cached} absorbed costs no more up to ${tokens(found.crossover, "new")}.`
    : `${compare} ${cached} expanded costs less from the first new token on.`;
}

// --- the curve, 360 units wide

const [WIDTH, HEIGHT] = [360, 200];
const [LEFT, RIGHT, TOP, BOTTOM] = [36, 350, 16, 162];
const TICKS = { 0: "1", 1: "10", 2: "100", 3: "1k", 4: "10k", 5: "100k", 6: "1M" };

function plot(config, cached_tokens, new_tokens, found) {
  const news = Array.from({ length: 81 }, (_, i) => BigInt(Math.round(2 ** (i / 4))));
  const at = (new_) => Math.log10(ratio(attention_macs(config, new_, cached_tokens + new_)));
  const heights = news.map(at);
  const low = Math.floor(Math.min(...heights, -0.01));
  const high = Math.ceil(Math.max(...heights, 0.01));
  const x = (new_) => LEFT + (Math.log2(Number(new_)) / 20) * (RIGHT - LEFT);
  const y = (height) => BOTTOM - ((height - low) / (high - low)) * (BOTTOM - TOP);
  const line = (x1, y1, x2, y2, attributes) => svg("line", { x1, y1, x2, y2, ...attributes });
  const grid = { stroke: "var(--rule)", "stroke-width": 1 };
  const marks = { stroke: "var(--quiet)", "stroke-width": 1 };
  const parts = [];
  for (const [power, label] of Object.entries(TICKS)) {
    const place = x(10 ** power);
    parts.push(line(place, TOP, place, BOTTOM, grid), svg("text", { x: place, y: BOTTOM + 15, "text-anchor": "middle" }, label));
  }
  for (let power = low; power <= high; power++) {
    const label = power < 0 ? (10 ** power).toFixed(-power) : count(10 ** power);
    parts.push(
      line(LEFT, y(power), RIGHT, y(power), power ? grid : marks),
      svg("text", { x: LEFT - 5, y: y(power) + 4, "text-anchor": "end" }, label),
    );
  }
  parts.push(
    svg("text", { x: (LEFT + RIGHT) / 2, y: HEIGHT - 6, "text-anchor": "middle" }, "new tokens"),
    svg("text", { x: 2, y: 8 }, "absorbed / expanded"),
  );
  if (found.crossover) {
    const place = x(found.crossover);
    const end = place > (LEFT + RIGHT) / 2;
    parts.push(
      line(place, TOP, place, BOTTOM, { ...marks, "stroke-dasharray": "4 3", "data-mark": "crossover" }),
      svg("text", { x: place + (end ? -5 : 5), y: BOTTOM - 6, "text-anchor": end ? "end" : "start" }, count(found.crossover)),
    );
  }
  parts.push(
    curve(news.map((new_, i) => [x(new_), y(heights[i])]), { stroke: "var(--key)" }),
    svg("circle", { cx: x(new_tokens), cy: y(at(new_tokens)), r: 5, fill: "var(--key)", stroke: "var(--paper)", "stroke-width": 2, "data-mark": "present" }),
  );
  return parts;
}

// --- the view

function render({ model, el }) {
  const { models, limits } = JSON.parse(model.get("registry"));
  const prefix = `mla-abx-${++views}`;
  const note = h("p", { class: "mla-part-note", role: "status" });
  const summary = h("p", { class: "mla-part-summary", "aria-live": "polite" });
  const modes = h("div", { class: "mla-abx-modes" });
  const answers = h("dl");
  const picture = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img" });
  const about = h("p", { class: "mla-part-quiet mla-abx-about" });

  const options = models.map((entry) => h("option", { value: entry.name }, entry.title));
  const picker = h("select", { name: "model", id: `${prefix}-model` }, ...options);
  picker.addEventListener("change", () => {
    const entry = models.find((entry) => entry.name === picker.value);
    model.set("model", entry.name);
    model.set("heads", entry.num_attention_heads);
    model.set("kv_lora_rank", entry.kv_lora_rank);
    model.save_changes();
    note.textContent = "";
  });
  const fields = Object.entries(LABELS).map(([name, label]) =>
    number_field({ model, note, prefix, name, label, limits: limits[name], log: true }),
  );

  function bar(mode, value, largest) {
    const share = h("span");
    share.style.width = `${(Number(value) / Number(largest)) * 100}%`;
    return h("div", { class: `mla-abx-bar mla-abx-${mode}`, "aria-hidden": "true" }, share);
  }

  function paint() {
    const entry = models.find((entry) => entry.name === model.get("model"));
    const config = {
      num_attention_heads: BigInt(model.get("heads")),
      kv_lora_rank: BigInt(model.get("kv_lora_rank")),
      qk_nope_head_dim: BigInt(entry.qk_nope_head_dim),
      qk_rope_head_dim: BigInt(entry.qk_rope_head_dim),
      v_head_dim: BigInt(entry.v_head_dim),
    };
    const [new_tokens, cached_tokens] = [BigInt(model.get("new_tokens")), BigInt(model.get("cached_tokens"))];
    const found = quantities(config, new_tokens, cached_tokens);
    const { expanded_macs, absorbed_macs } = found;
    const largest = expanded_macs > absorbed_macs ? expanded_macs : absorbed_macs;

    picker.value = entry.name;
    for (const field of fields) field.paint();
    summary.textContent = sentence(found, cached_tokens);
    modes.replaceChildren(
      h("dl", {}, quantity("expanded, multiply-adds", "expanded_macs", expanded_macs, short(expanded_macs))),
      bar("expanded", expanded_macs, largest),
      h("dl", {}, quantity("absorbed, multiply-adds", "absorbed_macs", absorbed_macs, short(absorbed_macs))),
      bar("absorbed", absorbed_macs, largest),
    );
    answers.replaceChildren(
      quantity("absorbed / expanded", "ratio", found.ratio, found.ratio.toPrecision(3)),
      quantity("they cross at, new tokens", "crossover", found.crossover ?? "", found.crossover === null ? "never" : count(found.crossover)),
    );
    picture.replaceChildren(...plot(config, cached_tokens, new_tokens, found));
    picture.setAttribute("aria-label", `Absorbed over expanded against new tokens. ${summary.textContent}`);
    about.textContent =
      `One layer, between the query projections and the output projection, with ${entry.title}'s widths: a head's keys ` +
      `${entry.qk_nope_head_dim} + ${entry.qk_rope_head_dim}, its values ${entry.v_head_dim}. New tokens see the cached ones and themselves.`;
  }

  const root = h(
    "div",
    { class: "mla-part", "data-widget": "absorption-crossover", role: "group", "aria-label": "Cost of expanded and absorbed attention" },
    h(
      "div",
      { class: "mla-part-controls" },
      h("div", { class: "mla-part-field mla-abx-model" }, h("label", { for: picker.id }, "model"), picker),
      ...fields.map((field) => field.element),
    ),
    note,
    summary,
    modes,
    h("div", { class: "mla-abx-answer" }, picture, answers),
    about,
  );
  return live({ model, el, root, paint, settings: ["model", ...Object.keys(LABELS)] });
}

export default { render };
