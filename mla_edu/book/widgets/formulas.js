// Formulas in the browser, each with the name that it has in mla_edu, and compared with it by a test.
// Whole numbers are BigInt, so that they are exact however large; rates and shares are numbers.

const FP8_BLOCK = 128n;
const MOST_TOKENS = 2n ** 40n;
const STATE_BYTES = 4n;
// Rows as mla_edu.cost.formats.ROWS has them: the kind of attention, and what divides the latent's width
const ROWS = {
  fp8_mla: { kind: "mla", multiple: 128n },
  fp4_mla_432: { kind: "mla", multiple: 16n },
  fp4_mla_368: { kind: "mla", multiple: 16n },
  fp4_mla_352: { kind: "mla", multiple: 16n },
  fp8_csa: { kind: "csa", bytes: 584n },
};
const BYTES_OF_32 = { fp32: 128n, fp16: 64n, bf16: 64n, fp8: 32n, fp4: 17n, int4: 18n };

const min = (a, b) => (a < b ? a : b);
const max = (a, b) => (a > b ? a : b);
const ceil_div = (a, b) => (a + b - 1n) / b;

// All whole numbers of what Python sent, as BigInt
function exact(value) {
  if (Number.isInteger(value)) return BigInt(value);
  if (Array.isArray(value)) return value.map(exact);
  if (value === null || typeof value !== "object") return value;
  return Object.fromEntries(Object.entries(value).map(([key, item]) => [key, exact(item)]));
}

// --- mla_edu.config

const is_mla = (config) => config?.kv_lora_rank !== undefined;

function kind({ num_attention_heads, num_key_value_heads, kv_lora_rank }) {
  if (kv_lora_rank !== undefined) return "mla";
  if (num_key_value_heads === num_attention_heads) return "mha";
  return num_key_value_heads === 1n ? "mqa" : "gqa";
}

function elements_per_token(config) {
  if (is_mla(config)) return config.kv_lora_rank + config.qk_rope_head_dim;
  return 2n * config.num_key_value_heads * config.head_dim;
}

// --- mla_edu.cost.formats

const bytes_per_number = (dtype) => ({ fp32: 4n, fp16: 2n, bf16: 2n, fp8: 1n })[dtype];

const fp8_row_bytes = (kv_lora_rank, qk_rope_head_dim) =>
  kv_lora_rank + 4n * (kv_lora_rank / FP8_BLOCK) + 2n * qk_rope_head_dim;

const bytes_of_weights = (num_weights, dtype) => ceil_div(num_weights * BYTES_OF_32[dtype], 32n);

function mla_row_bytes(kv_lora_rank, qk_rope_head_dim, dtype) {
  if (dtype === "fp8_mla") return fp8_row_bytes(kv_lora_rank, qk_rope_head_dim);
  const rotary = qk_rope_head_dim * (dtype === "fp4_mla_432" ? 2n : 1n);
  return kv_lora_rank / 2n + kv_lora_rank / 16n + (dtype === "fp4_mla_352" ? 0n : 16n) + rotary;
}

// --- mla_edu.cost.memory

// A model has groups of layers that cache alike; a layer's config stands for one layer
function groups(model_or_config, role) {
  const one = () => [
    { role: "kv", layers: 1n, elements: elements_per_token(model_or_config), window: null, stride: 1n },
  ];
  return (model_or_config.cache ?? one()).filter((group) => group.role === role);
}

function num_entries({ window, stride }, num_tokens) {
  return (window === null ? num_tokens : min(num_tokens, window)) / stride;
}

function entry_bytes(model_or_config, { role, elements }, dtype) {
  const row = ROWS[dtype];
  if (role === "index" && (dtype === "fp8" || row)) return elements + 4n * ceil_div(elements, FP8_BLOCK);
  if (row?.kind === "csa") return row.bytes;
  if (row) return mla_row_bytes(model_or_config.kv_lora_rank, model_or_config.qk_rope_head_dim, dtype);
  return elements * bytes_per_number(dtype);
}

function cache_bytes(model_or_config, role, num_tokens, batch_size, dtype) {
  const bytes = (group) => group.layers * num_entries(group, num_tokens) * entry_bytes(model_or_config, group, dtype);
  return batch_size * groups(model_or_config, role).reduce((sum, group) => sum + bytes(group), 0n);
}

const kv_cache_bytes = (model_or_config, num_tokens, batch_size, dtype) =>
  cache_bytes(model_or_config, "kv", num_tokens, batch_size, dtype);

const index_cache_bytes = (model, num_tokens, batch_size, dtype) =>
  cache_bytes(model, "index", num_tokens, batch_size, dtype);

function state_bytes(model) {
  return model.state_elements === null ? null : model.state_elements * STATE_BYTES;
}

function sequence_bytes(model, num_tokens, dtype) {
  const cache = kv_cache_bytes(model, num_tokens, 1n, dtype) + index_cache_bytes(model, num_tokens, 1n, dtype);
  return cache + (state_bytes(model) ?? 0n);
}

// --- mla_edu.cost.parallel: a layout is { tensor, data, context, pipeline, experts }

const layouts = (num_gpus) =>
  Object.fromEntries(
    ["tensor", "data", "context"].map((name) => [
      name,
      { tensor: 1n, data: 1n, context: 1n, pipeline: 1n, experts: null, [name]: num_gpus },
    ]),
  );

const group_of = ({ tensor, context }) => tensor * context;

// Whether each GPU has a head, and each stage a layer
function allowed({ num_attention_heads, num_layers }, layout) {
  return (num_attention_heads === null || group_of(layout) <= num_attention_heads) && layout.pipeline <= num_layers;
}

function sequence_share(model, num_tokens, layout, dtype) {
  const held = (group) => {
    const entries = ceil_div(num_entries(group, num_tokens), layout.context);
    const size = (entry_bytes(model, group, dtype) * ceil_div(group.heads, layout.tensor)) / group.heads;
    return ceil_div(group.layers, layout.pipeline) * entries * size;
  };
  const total = (role) => groups(model, role).reduce((sum, group) => sum + held(group), 0n);
  return { kv: total("kv"), index: total("index"), state: state_share(model, layout) };
}

function state_share({ state_elements, shared_state_elements, state_heads }, layout) {
  if (state_elements === null) return null;
  const divided = (state_elements - shared_state_elements) * ceil_div(state_heads, group_of(layout));
  return STATE_BYTES * ceil_div(ceil_div(divided, state_heads) + shared_state_elements, layout.pipeline);
}

const share_total = ({ kv, index, state }) => kv + index + (state ?? 0n);

function cache_copies({ cache }, { tensor }) {
  return cache.map(({ heads }) => ceil_div(tensor, heads)).reduce(max);
}

const weight_formats = (model, dtype = null) => (dtype === null ? model.weights : { attention: dtype, others: dtype });

// Of all layers; null where they are not all alike
function attention_of(model) {
  const kv = groups(model, "kv");
  const alike = model.config && kv.every(({ elements }) => elements === elements_per_token(model.config));
  const layers = kv.reduce((sum, group) => sum + group.layers, 0n);
  return alike && layers === model.num_layers ? layers * num_attention_parameters(model.config) : null;
}

function weight_bytes(model, dtype = null) {
  const formats = weight_formats(model, dtype);
  if (model.num_parameters === null || formats === null) return null;
  const attention = attention_of(model);
  if (attention === null) {
    return formats.attention === formats.others ? bytes_of_weights(model.num_parameters, formats.others) : null;
  }
  const others = bytes_of_weights(max(model.num_parameters - attention, 0n), formats.others);
  return bytes_of_weights(attention, formats.attention) + others;
}

function weight_share(model, layout, dtype = null) {
  if (weight_bytes(model, dtype) === null) return null;
  const { config, num_parameters, num_layers } = model;
  const [formats, attention] = [weight_formats(model, dtype), attention_of(model)];
  const among = (layout.experts ?? group_of(layout) * layout.data) * layout.pipeline;
  if (attention === null) {
    return layout.data === 1n ? bytes_of_weights(ceil_div(num_parameters, among), formats.others) : null;
  }
  const { per_head, per_kv_head, common } = attention_parameters(config);
  const kv_heads = is_mla(config) ? 0n : config.num_key_value_heads;
  const heads = ceil_div(config.num_attention_heads, group_of(layout));
  const layer = heads * per_head + ceil_div(kv_heads, layout.tensor) * per_kv_head + common;
  const held = bytes_of_weights(ceil_div(num_layers, layout.pipeline) * layer, formats.attention);
  return held + bytes_of_weights(ceil_div(max(num_parameters - attention, 0n), among), formats.others);
}

// --- mla_edu.cost.room

function fit(model, gpu, num_tokens, layout, batch_size, dtype, weights_dtype = null) {
  const weights = weight_share(model, layout, weights_dtype);
  if (weights === null) return null;
  const per_sequence = share_total(sequence_share(model, num_tokens, layout, dtype));
  const free_bytes = gpu.memory - weights;
  const together = ceil_div(batch_size, layout.data);
  let [most, above] = [-1n, MOST_TOKENS]; // most tokens that fit, fewest that do not
  while (above - most > 1n) {
    const middle = (most + above) / 2n;
    if (together * share_total(sequence_share(model, middle, layout, dtype)) <= free_bytes) most = middle;
    else above = middle;
  }
  const many = free_bytes > 0n && per_sequence ? free_bytes / per_sequence : 0n;
  return {
    weight_bytes: weights,
    free_bytes,
    max_sequences: per_sequence ? layout.data * many : null,
    max_tokens: most === MOST_TOKENS - 1n ? null : most < 0n ? 0n : most,
  };
}

// --- mla_edu.cost.compute: of layers with MLA; a cost is { flops, bytes }

function attention_macs_per_score({ num_attention_heads, ...config }, mode) {
  const { kv_lora_rank, qk_nope_head_dim, qk_rope_head_dim, v_head_dim } = config;
  if (mode === "absorbed") return num_attention_heads * (2n * kv_lora_rank + qk_rope_head_dim);
  return num_attention_heads * (qk_nope_head_dim + qk_rope_head_dim + v_head_dim);
}

const expansion_macs_per_token = ({ num_attention_heads, kv_lora_rank, qk_nope_head_dim, v_head_dim }) =>
  num_attention_heads * kv_lora_rank * (qk_nope_head_dim + v_head_dim);

function attention_parameters(config) {
  const {
    hidden_size: d,
    head_dim,
    qkv_bias,
    o_bias,
    q_lora_rank,
    kv_lora_rank,
    qk_rope_head_dim,
    v_head_dim,
  } = config;
  if (!is_mla(config)) {
    const [head, bias] = [d * head_dim, qkv_bias ? head_dim : 0n];
    return { per_head: 2n * head + bias, per_kv_head: 2n * (head + bias), common: o_bias ? d : 0n };
  }
  const query = config.qk_nope_head_dim + qk_rope_head_dim;
  const up = expansion_macs_per_token({ ...config, num_attention_heads: 1n });
  return {
    per_head: (q_lora_rank ?? d) * query + up + v_head_dim * d,
    per_kv_head: 0n,
    common: d * (q_lora_rank ?? 0n) + d * (kv_lora_rank + qk_rope_head_dim),
  };
}

function num_attention_parameters(config) {
  const { per_head, per_kv_head, common } = attention_parameters(config);
  const kv_heads = is_mla(config) ? 0n : config.num_key_value_heads;
  return config.num_attention_heads * per_head + kv_heads * per_kv_head + common;
}

// The rectangle: every new token with every key
function attention_macs(config, num_new, num_keys, mode) {
  const scores = num_new * num_keys * attention_macs_per_score(config, mode);
  return scores + (mode === "expanded" ? num_keys : num_new) * expansion_macs_per_token(config);
}

function absorption_crossover(config, num_cached) {
  const up = config.qk_nope_head_dim + config.v_head_dim;
  const gap = 2n * config.kv_lora_rank - up;
  if (gap <= 0n) return null;
  const macs = (num_new, mode) => attention_macs(config, num_new, num_cached + num_new, mode);
  let [most, above] = [0n, (config.kv_lora_rank * up) / gap + 1n]; // absorbed costs no more; it costs more
  while (above - most > 1n) {
    const middle = (most + above) / 2n;
    if (macs(middle, "absorbed") > macs(middle, "expanded")) above = middle;
    else most = middle;
  }
  return most;
}

function kernel_cost(config, num_rows, num_keys, batch_size, dtype) {
  const per_score = attention_macs_per_score({ ...config, num_attention_heads: 1n }, "absorbed");
  const around = 2n * num_rows * (2n * config.kv_lora_rank + config.qk_rope_head_dim);
  return {
    flops: batch_size * 2n * num_rows * num_keys * per_score,
    bytes: kv_cache_bytes(config, num_keys, batch_size, dtype) + batch_size * around,
  };
}

// --- mla_edu.cost.machine: rates are { flop_per_s, bytes_per_s }

const intensity = ({ flops, bytes }) => Number(flops) / Number(bytes);

const ridge = ({ flop_per_s, bytes_per_s }) => flop_per_s / bytes_per_s;

const roofline = (cost, { flop_per_s, bytes_per_s }) => Math.min(flop_per_s, intensity(cost) * bytes_per_s);

const step_seconds = ({ flops, bytes }, { flop_per_s, bytes_per_s }) =>
  Math.max(Number(flops) / flop_per_s, Number(bytes) / bytes_per_s);

const pace = ({ flops, bytes }, { flop_per_s, bytes_per_s }) =>
  Number(bytes) / bytes_per_s >= Number(flops) / flop_per_s ? "memory" : "arithmetic";

// --- mla_edu.ops.rope

const rope_frequencies = (width, theta) => Array.from({ length: width / 2 }, (_, i) => theta ** ((-2 * i) / width));

// Neighbours are pairs
function rotate(x, position, frequencies) {
  return frequencies.flatMap((frequency, i) => {
    const [cos, sin] = [Math.cos(position * frequency), Math.sin(position * frequency)];
    const [first, second] = [x[2 * i], x[2 * i + 1]];
    return [first * cos - second * sin, second * cos + first * sin];
  });
}
