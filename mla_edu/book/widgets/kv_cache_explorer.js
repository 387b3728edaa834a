// The cache explorer in the browser: settings, then the view.

const MOST_MODELS = 4;

// --- settings

// Own dimensions that make a layer: key/value heads divide the query heads
function whole(dims, said) {
  let heads = Math.min(dims.num_key_value_heads, dims.num_attention_heads);
  while (dims.num_attention_heads % heads) heads--;
  if (heads !== dims.num_key_value_heads && !dims.kv_lora_rank) {
    said.push(
      `${LABELS.num_key_value_heads}: ${dims.num_key_value_heads} became ${heads}, which divides the query heads.`,
    );
  }
  return { ...dims, num_key_value_heads: heads };
}

const SETTINGS = ["tokens", "batch", "dtype", "gpu", "gpus", "weights"];

// Its models, and the dimensions of the reader's own, stand in the address too
class Explorer extends View {
  constructor(given, data) {
    const of = { dtype: Object.keys(DTYPES), gpu: data.gpus.map(({ name }) => name), weights: Object.keys(WEIGHTS) };
    const numbers = ["tokens", "batch", "gpus"].map((name) => [
      name,
      { label: LABELS[name], limits: data.limits[name] },
    ]);
    const words = Object.entries(of).map(([name, choices]) => [name, { label: name, choices }]);
    super(given, "kv-cache-explorer", "KV cache explorer", Object.fromEntries([...words, ...numbers]));
  }

  get data() {
    return JSON.parse(this.model.get("data"));
  }

  own() {
    return own_dims(this.data.own_limits, this.model.get("own"));
  }

  settings() {
    return { models: this.model.get("models"), ...super.settings(), own: this.model.get("own") };
  }

  written() {
    const { models, own: _, ...settings } = this.settings();
    const dims = Object.entries(this.own()).map(([name, value]) => [name, models.includes(OWN) ? value : null]);
    return { models: models.join(","), ...settings, ...Object.fromEntries(dims) };
  }

  restored(said) {
    const settings = super.restored(said);
    const { models, own_limits } = this.data;
    const names = [OWN, ...models.map(({ name }) => name)];
    const asked = (this.address.get("models") ?? "").split(",").filter((name) => name !== "");
    const chosen = asked.filter((name) => names.includes(name));
    for (const name of asked.filter((name) => !names.includes(name))) said.push(ignored("model", name, "not known"));
    if (chosen.length > MOST_MODELS) said.push(`Only the first ${MOST_MODELS} models are shown.`);
    if (chosen.length) settings.models = chosen.slice(0, MOST_MODELS);
    if (!chosen.includes(OWN)) return settings;
    const dims = Object.entries(own_limits).map(([name, limits]) => [name, { label: LABELS[name], limits }]);
    const own = { ...this.own(), ...super.restored(said, Object.fromEntries(dims)) };
    return { ...settings, own: whole(own, said) };
  }
}

// --- the view

function what_if_rows(entry, found, num_tokens, dtype) {
  const sizes = Object.entries(what_if(entry)).map(([kind, variant]) => [
    kind,
    sequence_bytes(variant, num_tokens, cache_dtype(variant, dtype)),
  ]);
  const own_size = found.bytes_per_sequence;
  const largest = sizes.reduce((most, [, size]) => (size > most ? size : most), own_size);
  const as_it_is = ([kind, size]) => kind.split("-")[0] === entry.kind && size === own_size;
  const row = (kind, bytes, own, name) =>
    h(
      "li",
      { "data-kind": kind.split("-")[0] },
      h(own ? "strong" : "span", {}, own ? `${kind.toUpperCase()}, as it is` : kind.toUpperCase()),
      bar(bytes, largest),
      h("span", { "data-quantity": name, "data-what-if": kind, "data-value": bytes, title: count(bytes) }, size(bytes)),
    );
  const rows = sizes.map(([kind, size]) => row(kind, size, as_it_is([kind, size]), "what_if"));
  return sizes.some(as_it_is) ? rows : [row(entry.kind, own_size, true, "as_it_is"), ...rows];
}

function head_widths(config) {
  if (!is_mla(config)) return `A head’s key and its value have ${count(config.head_dim)} numbers each.`;
  const { qk_nope_head_dim, qk_rope_head_dim, v_head_dim } = config;
  const key = `${count(qk_nope_head_dim + qk_rope_head_dim)} numbers, ${count(qk_rope_head_dim)} of them rotary`;
  return `A head’s key has ${key}; its value has ${count(v_head_dim)}.`;
}

function alternatives(entry, found, num_tokens, dtype) {
  const rows = what_if_rows(entry, found, num_tokens, dtype);
  return [
    h("p", { class: "mla-kvx-heading" }, `One sequence of ${entry.title}, had its layers another attention`),
    h("ul", {}, ...rows),
    rows.length > 1
      ? h("p", { class: "mla-part-quiet" }, head_widths(entry.config))
      : h("p", {}, "Its layers are not alike, or not known in full: nothing to exchange."),
  ];
}

// What the fullest GPU holds: a row for each layout
function layout_rows(found) {
  const missing = found.weight_bytes === null ? "not known" : "no limit";
  const cell = (way, name, value, written, none) => {
    const title = typeof value === "bigint" ? count(value) : null;
    const shown = value === null ? none : written(value);
    return h("td", { "data-quantity": `${way}.${name}`, "data-value": value ?? "", title }, shown);
  };
  const nothing = { weight_bytes: null, bytes_per_sequence: null, copies: null, max_sequences: null, max_tokens: null };
  return Object.entries(found.on_each).map(([way, each]) => {
    const values = each ?? nothing;
    const none = each === null ? "–" : missing;
    return h(
      "tr",
      {},
      h("th", { scope: "row", title: WITH[way] }, way),
      cell(way, "weight_bytes", values.weight_bytes, size, each === null ? "–" : "not known"),
      cell(way, "bytes_per_sequence", values.bytes_per_sequence, size, none),
      cell(way, "copies", values.copies, count, none),
      cell(way, "max_sequences", values.max_sequences, large, none),
      cell(way, "max_tokens", values.max_tokens, large, none),
    );
  });
}

function result(entry, found, largest) {
  const heads = ["on each GPU", "weights", "sequence", "copies", "fit", "tokens"];
  return h(
    "div",
    {
      class: "mla-kvx-model",
      role: "group",
      "aria-label": entry.title,
      "data-model": entry.name,
      "data-kind": entry.kind,
    },
    h("p", { class: "mla-kvx-name" }, entry.title, " ", h("span", {}, entry.kind.toUpperCase())),
    bar(found.bytes_per_sequence, largest),
    h(
      "dl",
      {},
      quantity("per token", "bytes_per_token", found.bytes_per_token, size),
      quantity("per sequence", "bytes_per_sequence", found.bytes_per_sequence, size),
      quantity("in all", "bytes_total", found.bytes_total, size),
      quantity("weights", "weight_bytes", found.weight_bytes, size, "not known"),
    ),
    h(
      "table",
      {},
      h("thead", {}, h("tr", {}, ...heads.map((text) => h("th", { scope: "col" }, text)))),
      h("tbody", {}, ...layout_rows(found)),
    ),
  );
}

function model_choices(models, optional) {
  const groups = Object.entries(KINDS).map(([kind, label]) => {
    const entries = models.filter((entry) => entry.kind === kind);
    return h("optgroup", { label }, ...options(entries.map(({ name, title }) => [name, title])));
  });
  return [...options(optional ? [["", "—"]] : []), ...groups, ...options([[OWN, "Own dimensions …"]])];
}

// What is asked most: models, tokens in a sequence, sequences at once
const PRESETS = [
  ["chat", "Chat: 8k × 64", { tokens: 8 * 1024, batch: 64 }],
  ["agent", "Agent: 128k × 8", { tokens: 128 * 1024, batch: 8 }],
  ["long", "One text of 1M", { tokens: 1024 ** 2, batch: 1 }],
];

function render(given) {
  const { model } = given;
  const data = JSON.parse(model.get("data"));
  const registry = exact(data);
  const view = new Explorer(given, data);
  const results = h("div", { class: "mla-kvx-results" });
  const others = h("div", { class: "mla-kvx-what-if" });
  const remarks = h("p", { class: "mla-part-quiet mla-part-about" });
  const own = () => view.own();
  const change = (settings, ...said) => view.set(settings, said.filter((text) => text !== "").join(" "));
  const presets = PRESETS.map(([name, label, settings]) => view.button(name, label, () => change(settings)));

  const pickers = Array.from({ length: MOST_MODELS }, (_, place) =>
    view.picker({
      name: place ? `model-${place + 1}` : "model",
      label: place ? "compare with" : "model",
      choices: model_choices(data.models, place > 0),
      read: () => model.get("models")[place] ?? "",
      take(name) {
        const models = pickers.map(({ select }) => select.value).filter((value) => value !== "");
        change({ models, ...(name === OWN && { own: own() }) });
      },
    }),
  );
  const settings = { limits: data.limits.tokens, slider: "log", step: 0.125 };
  const fields = [
    ...pickers,
    view.number_field({
      name: "tokens",
      label: LABELS.tokens,
      ...settings,
      take: (tokens, said) => change({ tokens }, said),
    }),
    view.number_field({
      name: "batch",
      label: LABELS.batch,
      limits: data.limits.batch,
      take: (batch, said) => change({ batch }, said),
    }),
    view.picker({
      name: "dtype",
      label: "cache format",
      choices: options(Object.entries(DTYPES)),
      take: (dtype) => change({ dtype }),
    }),
    view.picker({
      name: "gpu",
      label: "GPU",
      choices: options(data.gpus.map(({ name, title }) => [name, title])),
      take: (gpu) => change({ gpu }),
    }),
    view.number_field({
      name: "gpus",
      label: LABELS.gpus,
      limits: data.limits.gpus,
      take: (gpus, said) => change({ gpus }, said),
    }),
    view.picker({
      name: "weights",
      label: "weights",
      choices: options(Object.entries(WEIGHTS)),
      take: (weights) => change({ weights }),
    }),
  ];
  const own_fields = new Map(
    Object.entries(data.own_limits).map(([name, limits]) => {
      const read = () => own()[name];
      const take = (value, said) => {
        const more = [];
        change({ own: whole({ ...own(), [name]: value }, more) }, said, ...more);
      };
      return [name, view.number_field({ name, label: LABELS[name], limits, read, take })];
    }),
  );
  const own_set = h("fieldset", { class: "mla-part-controls" }, h("legend", {}, "Own dimensions"));
  own_set.append(...[...own_fields.values()].map(({ element }) => element));

  function paint() {
    const names = model.get("models");
    const asked = exact(Object.fromEntries(SETTINGS.map((name) => [name, model.get(name)])));
    asked.gpu = registry.gpus.find(({ name }) => name === asked.gpu);
    const entry_of = (name) =>
      name === OWN ? own_model(exact(own())) : registry.models.find((entry) => entry.name === name);
    const shown = names.map(entry_of).map((entry) => [entry, quantities(entry, asked)]);
    const largest = shown.reduce(
      (most, [, found]) => (found.bytes_per_sequence > most ? found.bytes_per_sequence : most),
      0n,
    );

    for (const field of [...fields, ...own_fields.values()]) field.paint();
    own_set.hidden = !names.includes(OWN);
    own_fields.get("num_key_value_heads").element.hidden = own().kv_lora_rank > 0;
    own_fields.get("qk_rope_head_dim").element.hidden = own().kv_lora_rank === 0;
    results.replaceChildren(...shown.map(([entry, found]) => result(entry, found, largest)));
    others.replaceChildren(...alternatives(...shown[0], asked.tokens, asked.dtype));
    view.say(sentence(...shown[0], asked));
    remarks.textContent = remark(shown, asked);
  }

  const watched = ["models", ...SETTINGS, "own"];
  const top = h("div", { class: "mla-part-buttons mla-kvx-presets" }, ...presets);
  return view.show(watched, paint, top, controls(fields), own_set, view.note, view.summary, results, others, remarks);
}

export default { render };
