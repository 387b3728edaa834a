// Formulas in the browser, each with the name that it has in mla_edu, and compared with it by a test.
// Whole numbers are BigInt, so that they are exact however large; rates and shares are numbers.

const FP8_BLOCK = 128n;
const MOST_TOKENS = 2n ** 40n;

const min = (a, b) => (a < b ? a : b);
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

function kv_cache_bytes(model_or_config, num_tokens, batch_size, dtype) {
  const { kv_lora_rank, qk_rope_head_dim } = model_or_config;
  const per_entry = (group) =>
    dtype === "fp8_mla" ? fp8_row_bytes(kv_lora_rank, qk_rope_head_dim) : group.elements * bytes_per_number(dtype);
  const bytes = (group) => group.layers * num_entries(group, num_tokens) * per_entry(group);
  return batch_size * groups(model_or_config, "kv").reduce((sum, group) => sum + bytes(group), 0n);
}

function index_cache_bytes(model, num_tokens, batch_size, dtype) {
  const scaled = dtype === "fp8" || dtype === "fp8_mla";
  const per_entry = ({ elements }) =>
    scaled ? elements + 4n * ceil_div(elements, FP8_BLOCK) : elements * bytes_per_number(dtype);
  const bytes = (group) => group.layers * num_entries(group, num_tokens) * per_entry(group);
  return batch_size * groups(model, "index").reduce((sum, group) => sum + bytes(group), 0n);
}

function state_bytes(model) {
  return model.state_elements === null ? null : model.state_elements * bytes_per_number("fp32");
}

function weight_bytes(model) {
  return model.num_parameters === null ? null : model.num_parameters * bytes_per_number("bf16");
}

function sequence_bytes(model, num_tokens, dtype) {
  const cache = kv_cache_bytes(model, num_tokens, 1n, dtype) + index_cache_bytes(model, num_tokens, 1n, dtype);
  return cache + (state_bytes(model) ?? 0n);
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

// --- mla_edu.cost.compute: of layers with MLA; a cost is { flops, bytes }

function attention_macs_per_score({ num_attention_heads, ...config }, mode) {
  const { kv_lora_rank, qk_nope_head_dim, qk_rope_head_dim, v_head_dim } = config;
  if (mode === "absorbed") return num_attention_heads * (2n * kv_lora_rank + qk_rope_head_dim);
  return num_attention_heads * (qk_nope_head_dim + qk_rope_head_dim + v_head_dim);
}

const expansion_macs_per_token = ({ num_attention_heads, kv_lora_rank, qk_nope_head_dim, v_head_dim }) =>
  num_attention_heads * kv_lora_rank * (qk_nope_head_dim + v_head_dim);

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
