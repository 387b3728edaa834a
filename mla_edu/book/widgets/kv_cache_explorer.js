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

// The settings that an address holds, as far as they mean something; what does not is said
function restored(address, { models, gpus, limits, own_limits }, own, said) {
  const settings = {};
  const known = { gpu: gpus.map(({ name }) => name), dtype: Object.keys(DTYPES), weights: Object.keys(WEIGHTS) };
  const names = [OWN, ...models.map(({ name }) => name)];
  const ignored = (name, text, why) => said.push(`${name}: ignored “${text.slice(0, 40)}”, which is ${why}.`);
  const number = (name, text, limit) => {
    const value = read_number(text, limit);
    if (value === null) ignored(LABELS[name], text, "no whole number");
    else said.push(corrected(LABELS[name], text, value));
    return value;
  };
  for (const [name, choices] of Object.entries(known)) {
    const text = address.get(name);
    if (choices.includes(text)) settings[name] = text;
    else if (text !== null) ignored(name, text, "not known");
  }
  for (const [name, limit] of Object.entries(limits)) {
    const text = address.get(name);
    const value = text === null ? null : number(name, text, limit);
    if (value !== null) settings[name] = value;
  }
  const asked = (address.get("models") ?? "").split(",").filter((name) => name !== "");
  for (const name of asked.filter((name) => !names.includes(name))) ignored("model", name, "not known");
  const chosen = asked.filter((name) => names.includes(name));
  if (chosen.length > MOST_MODELS) said.push(`Only the first ${MOST_MODELS} models are shown.`);
  if (chosen.length) settings.models = chosen.slice(0, MOST_MODELS);
  if (!chosen.includes(OWN)) return settings;
  for (const [name, limit] of Object.entries(own_limits)) {
    const text = address.get(name);
    if (text !== null) own[name] = number(name, text, limit) ?? own[name];
  }
  return { ...settings, own: whole(own, said) };
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

function alternatives(entry, found, num_tokens, dtype) {
  const rows = what_if_rows(entry, found, num_tokens, dtype);
  return [
    h("p", { class: "mla-kvx-heading" }, `One sequence of ${entry.title}, had its layers another attention`),
    h("ul", {}, ...rows),
    ...(rows.length > 1 ? [] : [h("p", {}, "Its layers are not alike, or not known in full: nothing to exchange.")]),
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

const shown_settings = ["tokens", "batch", "dtype", "gpu", "gpus", "weights"];

function render({ model, el, address }) {
  const data = JSON.parse(model.get("data"));
  const registry = exact(data);
  const view = new View({ model, el }, "kv-cache-explorer", "KV cache explorer");
  const results = h("div", { class: "mla-kvx-results" });
  const others = h("div", { class: "mla-kvx-what-if" });
  const remarks = h("p", { class: "mla-part-quiet mla-part-about" });
  const own = () => own_dims(data.own_limits, model.get("own"));

  function shared() {
    const names = model.get("models");
    const settings = Object.fromEntries(shown_settings.map((name) => [name, model.get(name)]));
    const dims = Object.entries(own()).map(([name, value]) => [name, names.includes(OWN) ? value : null]);
    return { models: names.join(","), ...settings, ...Object.fromEntries(dims) };
  }

  function change(settings, ...said) {
    view.set(settings, said.filter((text) => text !== "").join(" "));
    address?.set(shared());
  }

  const pickers = Array.from({ length: MOST_MODELS }, (_, place) =>
    view.picker({
      name: place ? `model-${place + 1}` : "model",
      label: place ? "and" : "model",
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
    const asked = exact(Object.fromEntries(shown_settings.map((name) => [name, model.get(name)])));
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
    view.summary.textContent = sentence(...shown[0], asked);
    remarks.textContent = remark(shown, asked);
  }

  if (address) {
    const said = [];
    for (const [name, value] of Object.entries(restored(address, data, own(), said))) model.set(name, value);
    view.note.textContent = said.filter((text) => text !== "").join(" ");
  }
  const watched = ["models", ...shown_settings, "own"];
  return view.show(watched, paint, controls(fields), own_set, view.note, view.summary, results, others, remarks);
}

export default { render };
