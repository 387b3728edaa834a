// The cache explorer in the browser: the formulas first, each named as in mla_edu/cost.py, then the view.
// Sizes are BigInt, so that they are exact however large. Text enters the page as textContent only.

const BYTES_PER_NUMBER = { fp32: 4n, bf16: 2n, fp8: 1n };
const FP8_BLOCK = 128n;
const MOST_TOKENS = 2n ** 40n;

const min = (a, b) => (a < b ? a : b);
const ceil_div = (a, b) => (a + b - 1n) / b;

// --- bytes of the cache

const bytes_per_number = (dtype) => BYTES_PER_NUMBER[dtype];

function fp8_mla_token_bytes(config) {
  return config.kv_lora_rank + 4n * (config.kv_lora_rank / FP8_BLOCK) + 2n * config.qk_rope_head_dim;
}

function num_entries(group, num_tokens) {
  const kept = group.window === null ? num_tokens : min(num_tokens, group.window);
  return kept / group.stride;
}

function kv_cache_bytes(model, num_tokens, batch_size, dtype) {
  let total = 0n;
  for (const group of model.cache.filter((group) => group.role === "kv")) {
    const per_entry =
      dtype === "fp8_mla" ? fp8_mla_token_bytes(model.config) : group.elements * bytes_per_number(dtype);
    total += group.layers * num_entries(group, num_tokens) * per_entry;
  }
  return batch_size * total;
}

function index_cache_bytes(model, num_tokens, batch_size, dtype) {
  let total = 0n;
  for (const group of model.cache.filter((group) => group.role === "index")) {
    const per_entry =
      dtype === "fp8" || dtype === "fp8_mla"
        ? group.elements + 4n * ceil_div(group.elements, FP8_BLOCK)
        : group.elements * bytes_per_number(dtype);
    total += group.layers * num_entries(group, num_tokens) * per_entry;
  }
  return batch_size * total;
}

function state_bytes(model) {
  return model.state_elements === null ? null : model.state_elements * bytes_per_number("fp32");
}

function sequence_bytes(model, num_tokens, dtype) {
  const cache = kv_cache_bytes(model, num_tokens, 1n, dtype) + index_cache_bytes(model, num_tokens, 1n, dtype);
  return cache + (state_bytes(model) ?? 0n);
}

// --- what fits beside the weights

function weight_bytes(model) {
  return model.num_parameters === null ? null : model.num_parameters * bytes_per_number("bf16");
}

function fit(model, gpu, num_tokens, batch_size, dtype) {
  const weights = weight_bytes(model);
  if (weights === null) return null;
  const per_sequence = sequence_bytes(model, num_tokens, dtype);
  const num_gpus = ceil_div(weights, gpu.memory);
  const free_bytes = num_gpus * gpu.memory - weights;
  let [most, above] = [-1n, MOST_TOKENS]; // most tokens that fit, fewest that do not
  while (above - most > 1n) {
    const middle = (most + above) / 2n;
    if (batch_size * sequence_bytes(model, middle, dtype) <= free_bytes) most = middle;
    else above = middle;
  }
  return {
    num_gpus,
    free_bytes,
    max_sequences: per_sequence ? free_bytes / per_sequence : null,
    max_tokens: most === MOST_TOKENS - 1n ? null : most < 0n ? 0n : most,
  };
}

// --- as in mla_edu/widgets/kv_cache_explorer.py

const is_mla = (config) => config?.kv_lora_rank !== undefined;

function cache_dtype(model, dtype) {
  if (dtype !== "fp8_mla") return dtype;
  return is_mla(model.config) && model.config.kv_lora_rank % FP8_BLOCK === 0n ? "fp8_mla" : "fp8";
}

function elements_per_token(config) {
  return is_mla(config)
    ? config.kv_lora_rank + config.qk_rope_head_dim
    : 2n * config.num_key_value_heads * config.head_dim;
}

function own_model(own) {
  const { num_layers: layers, num_parameters, ...dims } = own;
  const { num_attention_heads, num_key_value_heads, head_dim, kv_lora_rank, qk_rope_head_dim } = dims;
  const config = kv_lora_rank
    ? { num_attention_heads, kv_lora_rank, qk_nope_head_dim: head_dim, qk_rope_head_dim, v_head_dim: head_dim }
    : { num_attention_heads, num_key_value_heads, head_dim };
  const heads_kind =
    num_key_value_heads === num_attention_heads ? "mha" : num_key_value_heads === 1n ? "mqa" : "gqa";
  return {
    name: OWN,
    title: "Your model",
    kind: kv_lora_rank ? "mla" : heads_kind,
    num_parameters: num_parameters || null,
    config,
    cache: [{ role: "kv", layers, elements: elements_per_token(config), window: null, stride: 1n }],
    state_elements: 0n,
  };
}

function what_if(model) {
  const { config } = model;
  const alike = (group) => group.role !== "kv" || group.elements === elements_per_token(config);
  if (!config || !model.cache.every(alike)) return {};
  const d = config.head_dim;
  const key_and_value = is_mla(config)
    ? config.qk_nope_head_dim + config.qk_rope_head_dim + config.v_head_dim
    : 2n * d;
  const mla = is_mla(config) ? config : { kv_lora_rank: 4n * d, qk_rope_head_dim: (d / 4n) * 2n };
  const with_elements = (elements, config = null) => ({
    ...model,
    config,
    cache: model.cache.map((group) => (group.role === "kv" ? { ...group, elements } : group)),
  });
  const heads = config.num_attention_heads;
  return {
    mha: with_elements(heads * key_and_value),
    ...(heads % 8n === 0n && { "gqa-8": with_elements(8n * key_and_value) }),
    mqa: with_elements(key_and_value),
    mla: with_elements(elements_per_token(mla), mla),
  };
}

function quantities(model, gpu, tokens, batch, dtype) {
  const own_dtype = cache_dtype(model, dtype);
  const per_sequence = sequence_bytes(model, tokens, own_dtype);
  const found = fit(model, gpu, tokens, batch, own_dtype);
  return {
    dtype: own_dtype,
    bytes_per_token: kv_cache_bytes(model, 1n, 1n, own_dtype),
    bytes_per_sequence: per_sequence,
    bytes_total: batch * per_sequence,
    weight_bytes: weight_bytes(model),
    free_bytes: found && found.free_bytes,
    num_gpus: found && found.num_gpus,
    max_sequences: found && found.max_sequences,
    max_tokens: found && found.max_tokens,
  };
}

// --- words and numbers

const OWN = "own";
const MOST_MODELS = 4;
const KINDS = {
  mla: "Latent attention (MLA)",
  mha: "Multi-head (MHA)",
  gqa: "Grouped-query (GQA)",
  mqa: "Multi-query (MQA)",
  csa: "Compressed sparse (CSA)",
};
const DTYPES = {
  fp32: "fp32, 4 bytes",
  bf16: "bf16, 2 bytes",
  fp8: "fp8, 1 byte",
  fp8_mla: "fp8 with scales, 656 bytes (MLA)",
};
const OWN_LABELS = {
  num_layers: "layers",
  num_attention_heads: "query heads",
  num_key_value_heads: "key/value heads",
  head_dim: "width of a head",
  kv_lora_rank: "latent (0: none)",
  qk_rope_head_dim: "rotary key",
  num_parameters: "parameters (0: unknown)",
};

const count = (number) => number.toLocaleString("en-US");

function human(num_bytes) {
  let value = Number(num_bytes);
  const units = ["B", "kB", "MB", "GB", "TB", "PB", "EB"];
  while (value >= 999.5 && units.length > 1) {
    value /= 1000;
    units.shift();
  }
  return `${value.toFixed(units[0] === "B" || value >= 99.95 ? 0 : value >= 9.995 ? 1 : 2)} ${units[0]}`;
}

// All integers of what Python sent, as BigInt.
function exact(value) {
  if (Number.isInteger(value)) return BigInt(value);
  if (Array.isArray(value)) return value.map(exact);
  if (value === null || typeof value !== "object") return value;
  return Object.fromEntries(Object.entries(value).map(([key, item]) => [key, exact(item)]));
}

// The number that a text means, kept within its limits; null where it means none.
function read_number(text, [lowest, highest, step = 1]) {
  if (!/^[+-]?\d+$/.test(text)) return null;
  const within = Math.min(Math.max(Number(text), lowest), highest);
  return within - (within % step);
}

function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null && value !== false) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children);
  return element;
}

// --- the view

let views = 0; // makes the ids of labels unique

function render({ model, el, address }) {
  const { limits, own_limits } = JSON.parse(model.get("registry"));
  const registry = exact(JSON.parse(model.get("registry")));
  const models = new Map(registry.models.map((entry) => [entry.name, entry]));
  const gpus = new Map(registry.gpus.map((entry) => [entry.name, entry]));
  const prefix = `mla-kvx-${++views}`;
  const note = h("p", { class: "mla-kvx-note", role: "status" });
  const summary = h("p", { class: "mla-kvx-summary", "aria-live": "polite" });
  const results = h("div", { class: "mla-kvx-results" });
  const alternatives = h("div", { class: "mla-kvx-what-if" });
  const remarks = h("p", { class: "mla-kvx-remarks" });

  const own = () => ({
    ...Object.fromEntries(Object.entries(own_limits).map(([name, [, , , first]]) => [name, first])),
    ...model.get("own"),
  });

  // Settings

  function change(settings, said = []) {
    for (const [name, value] of Object.entries(settings)) model.set(name, value);
    model.save_changes();
    note.textContent = said.join(" ");
    address?.set(shared());
  }

  // Clamp a number and say so; null for what is no number.
  function number(name, text, limit, said) {
    const value = read_number(text, limit);
    if (value === null) said.push(`${name}: ignored “${text.slice(0, 40)}”, which is no whole number.`);
    else if (value !== Number(text)) said.push(`${name}: ${text.slice(0, 40)} became ${count(value)}.`);
    return value;
  }

  // Own dimensions that make a layer: key/value heads divide the query heads.
  function whole(dims, said) {
    let heads = Math.min(dims.num_key_value_heads, dims.num_attention_heads);
    while (dims.num_attention_heads % heads) heads--;
    if (heads !== dims.num_key_value_heads && !dims.kv_lora_rank) {
      said.push(`key/value heads: ${dims.num_key_value_heads} became ${heads}, which divides the query heads.`);
    }
    return { ...dims, num_key_value_heads: heads };
  }

  function shared() {
    const names = model.get("models");
    return {
      models: names.join(","),
      ...Object.fromEntries(["tokens", "batch", "dtype", "gpu"].map((name) => [name, model.get(name)])),
      ...Object.fromEntries(Object.entries(own()).map(([name, value]) => [name, names.includes(OWN) ? value : null])),
    };
  }

  function restore() {
    const [settings, said] = [{}, []];
    const known = { models, gpu: gpus, dtype: new Map(Object.entries(DTYPES)) };
    const unknown = (name, value) => said.push(`${name}: ignored “${value.slice(0, 40)}”, which is not known.`);
    for (const name of ["dtype", "gpu"]) {
      const value = address.get(name);
      if (known[name].has(value)) settings[name] = value;
      else if (value !== null) unknown(name, value);
    }
    for (const name of ["tokens", "batch"]) {
      const text = address.get(name);
      const value = text === null ? null : number(name, text, limits[name], said);
      if (value !== null) settings[name] = value;
    }
    const names = (address.get("models") ?? "").split(",").filter((name) => name !== "");
    const chosen = names.filter((name) => name === OWN || models.has(name) || unknown("model", name) === null);
    if (chosen.length > MOST_MODELS) said.push(`Only the first ${MOST_MODELS} models are shown.`);
    if (chosen.length) settings.models = chosen.slice(0, MOST_MODELS);
    const dims = own();
    for (const [name, limit] of Object.entries(own_limits)) {
      const text = address.get(name);
      dims[name] = text === null ? dims[name] : (number(OWN_LABELS[name], text, limit, said) ?? dims[name]);
    }
    if (chosen.includes(OWN)) settings.own = whole(dims, said);
    for (const [name, value] of Object.entries(settings)) model.set(name, value);
    note.textContent = said.join(" ");
  }

  // Controls

  function field(label, control, extra = null) {
    control.id = `${prefix}-${control.name}`;
    return h("div", { class: "mla-kvx-field" }, h("label", { for: control.id }, label), control, ...(extra ? [extra] : []));
  }

  function choice(name, options, on_choice) {
    const control = h("select", { name }, ...options);
    control.addEventListener("change", () => on_choice(control.value));
    return control;
  }

  let edited = null; // the number field that the reader is writing in, which is left alone meanwhile

  function number_field(name, label, limit, on_number) {
    const [lowest, highest, step = 1] = limit;
    const control = h("input", { name, type: "number", min: lowest, max: highest, step, inputmode: "numeric" });
    const take = () => {
      const said = [];
      const value = number(label, control.value, limit, said);
      if (value !== null) on_number(value, said);
      else note.textContent = `${label}: expected a whole number from ${count(lowest)} to ${count(highest)}.`;
    };
    control.addEventListener("input", () => {
      edited = control;
      take();
    });
    control.addEventListener("change", () => {
      edited = null;
      paint();
    });
    return control;
  }

  function model_options(optional) {
    const groups = Object.entries(KINDS).map(([kind, label]) => {
      const entries = registry.models.filter((entry) => entry.kind === kind);
      return h("optgroup", { label }, ...entries.map((entry) => h("option", { value: entry.name }, entry.title)));
    });
    const none = optional ? [h("option", { value: "" }, "—")] : [];
    return [...none, ...groups, h("option", { value: OWN }, "Own dimensions …")];
  }

  const pickers = Array.from({ length: MOST_MODELS }, (_, place) =>
    choice(place ? `model-${place + 1}` : "model", model_options(place > 0), (name) => {
      const names = pickers.map((picker) => picker.value).filter((value) => value !== "");
      change({ models: names, ...(name === OWN && { own: own() }) });
    }),
  );
  const tokens = number_field("tokens", "tokens", limits.tokens, (value, said) => change({ tokens: value }, said));
  const slider = h("input", { type: "range", name: "tokens-log2", min: 10, max: 20, step: 0.125 });
  slider.setAttribute("aria-label", "Tokens in a sequence, from one thousand to one million");
  slider.addEventListener("input", () => change({ tokens: Math.round(2 ** Number(slider.value)) }));
  const batch = number_field("batch", "batch", limits.batch, (value, said) => change({ batch: value }, said));
  const dtype = choice(
    "dtype",
    Object.entries(DTYPES).map(([value, label]) => h("option", { value }, label)),
    (value) => change({ dtype: value }),
  );
  const gpu = choice(
    "gpu",
    registry.gpus.map((entry) => h("option", { value: entry.name }, entry.title)),
    (value) => change({ gpu: value }),
  );
  const own_fields = Object.entries(own_limits).map(([name, limit]) =>
    number_field(name, OWN_LABELS[name], limit, (value, said) =>
      change({ own: whole({ ...own(), [name]: value }, said) }, said),
    ),
  );
  const own_set = h(
    "fieldset",
    { class: "mla-kvx-own" },
    h("legend", {}, "Own dimensions"),
    ...own_fields.map((control) => field(OWN_LABELS[control.name], control)),
  );

  // Answers

  function quantity(label, name, value, text, missing) {
    const data = { "data-quantity": name, "data-value": value === null ? "" : value, title: value && count(value) };
    return h("div", {}, h("dt", {}, label), h("dd", data, value === null ? missing : text(value)));
  }

  function bar(value, largest) {
    const share = largest ? (Number(value) / Number(largest)) * 100 : 0;
    const fill = h("span");
    fill.style.width = `${share}%`;
    return h("div", { class: "mla-kvx-bar", "aria-hidden": "true" }, fill);
  }

  function result(entry, found, largest) {
    const missing = found.weight_bytes === null ? "not known" : "no limit";
    return h(
      "div",
      { class: "mla-kvx-model", role: "group", "aria-label": entry.title, "data-model": entry.name, "data-kind": entry.kind },
      h("p", { class: "mla-kvx-name" }, entry.title, " ", h("span", {}, entry.kind.toUpperCase())),
      bar(found.bytes_per_sequence, largest),
      h(
        "dl",
        {},
        quantity("per token", "bytes_per_token", found.bytes_per_token, human),
        quantity("per sequence", "bytes_per_sequence", found.bytes_per_sequence, human),
        quantity("in all", "bytes_total", found.bytes_total, human),
        quantity("GPUs needed", "num_gpus", found.num_gpus, count, "not known"),
        quantity("sequences fit", "max_sequences", found.max_sequences, count, missing),
        quantity("tokens fit", "max_tokens", found.max_tokens, count, missing),
      ),
    );
  }

  function paint_what_if(entry, found, tokens, dtype) {
    const sizes = Object.entries(what_if(entry)).map(([kind, variant]) => [
      kind,
      sequence_bytes(variant, tokens, cache_dtype(variant, dtype)),
    ]);
    const own_size = found.bytes_per_sequence;
    const largest = sizes.reduce((most, [, size]) => (size > most ? size : most), own_size);
    const is_own = ([kind, size]) => kind.split("-")[0] === entry.kind && size === own_size;
    const row = (kind, size, own, name) =>
      h(
        "li",
        { "data-kind": kind.split("-")[0] },
        h(own ? "strong" : "span", {}, own ? `${kind.toUpperCase()}, as it is` : kind.toUpperCase()),
        bar(size, largest),
        h("span", { "data-quantity": name, "data-what-if": kind, "data-value": size, title: count(size) }, human(size)),
      );
    const rows = sizes.map(([kind, size]) => row(kind, size, is_own([kind, size]), "what_if"));
    if (!sizes.some(is_own)) rows.unshift(row(entry.kind, own_size, true, "as_it_is"));
    alternatives.replaceChildren(
      h("p", { class: "mla-kvx-heading" }, `One sequence of ${entry.title}, had its layers another attention`),
      h("ul", {}, ...rows),
      ...(sizes.length ? [] : [h("p", {}, "Its layers are not alike, or not known in full: nothing to exchange.")]),
    );
  }

  function sentence(entry, found, gpu, tokens, batch) {
    const cost =
      `${entry.title} keeps ${human(found.bytes_per_token)} for a token and ${human(found.bytes_per_sequence)} ` +
      `for a sequence of ${count(tokens)} tokens.`;
    if (found.num_gpus === null) return `${cost} How much fits beside its weights is not known.`;
    const room = `${count(found.num_gpus)} × ${gpu.title} with ${human(found.free_bytes)} to spare`;
    const number = { null: "any number of", 0: "no", 1: "one" }[found.max_sequences] ?? count(found.max_sequences);
    const many = `${number} such sequence${number === "no" || number === "one" ? "" : "s"}`;
    const long = found.max_tokens === null ? "any length" : `at most ${count(found.max_tokens)} tokens`;
    return `${cost} Beside its weights, on ${room}, there is room for ${many}, or for ${count(batch)} of ${long}.`;
  }

  function remark(shown, dtype) {
    const said = ["Bars: one sequence. Weights in bf16, recurrent states in fp32. Per token: the first one. 1 GB = 10⁹ bytes."];
    const plain = shown.filter(([, found]) => found.dtype !== dtype).map(([entry]) => entry.title);
    if (plain.length) said.push(`The 656-byte layout is for MLA; counted in plain fp8: ${plain.join(", ")}.`);
    return said.join(" ");
  }

  function paint() {
    const names = model.get("models");
    const [num_tokens, batch_size] = [BigInt(model.get("tokens")), BigInt(model.get("batch"))];
    const card = gpus.get(model.get("gpu"));
    const entries = names.map((name) => (name === OWN ? own_model(exact(own())) : models.get(name)));
    const shown = entries.map((entry) => [entry, quantities(entry, card, num_tokens, batch_size, model.get("dtype"))]);
    const largest = shown.reduce((most, [, found]) => (found.bytes_per_sequence > most ? found.bytes_per_sequence : most), 0n);

    pickers.forEach((picker, place) => (picker.value = names[place] ?? ""));
    slider.value = Math.log2(model.get("tokens"));
    slider.setAttribute("aria-valuetext", `${count(num_tokens)} tokens`);
    dtype.value = model.get("dtype");
    gpu.value = model.get("gpu");
    own_set.hidden = !names.includes(OWN);
    const dims = own();
    const numbers = { tokens: model.get("tokens"), batch: model.get("batch"), ...dims };
    for (const control of [tokens, batch, ...own_fields]) {
      if (control !== edited) control.value = numbers[control.name];
      const idle = dims.kv_lora_rank ? "num_key_value_heads" : "qk_rope_head_dim";
      control.parentElement.hidden = control.name === idle;
    }

    results.replaceChildren(...shown.map(([entry, found]) => result(entry, found, largest)));
    paint_what_if(...shown[0], num_tokens, model.get("dtype"));
    summary.textContent = sentence(...shown[0], card, num_tokens, batch_size);
    remarks.textContent = remark(shown, model.get("dtype"));
  }

  const root = h(
    "div",
    { class: "mla-kvx", "data-widget": "kv-cache-explorer", role: "group", "aria-label": "KV cache explorer" },
    h(
      "div",
      { class: "mla-kvx-controls" },
      ...pickers.map((picker, place) => field(place ? "and" : "Model", picker)),
      field("Tokens in a sequence", tokens, slider),
      field("Sequences at once", batch),
      field("Cache format", dtype),
      field("GPU", gpu),
    ),
    own_set,
    note,
    summary,
    results,
    alternatives,
    remarks,
  );
  if (address) restore();
  paint();
  el.append(root);
  const events = ["models", "tokens", "batch", "dtype", "gpu", "own"].map((name) => `change:${name}`).join(" ");
  model.on(events, paint);
  return () => model.off(events, paint);
}

export default { render };
