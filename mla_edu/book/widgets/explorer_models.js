// The models of the cache explorer: the reader's own, and a model with another attention, as in kv_cache_explorer.py.

const OWN = "own";
const PUBLISHED = "published"; // the format in which a model's makers publish its weights

// What the reader gives, with the first value of what is not given
const own_dims = (own_limits, own) => ({
  ...Object.fromEntries(Object.entries(own_limits).map(([name, [, , , first]]) => [name, first])),
  ...own,
});

function cache_dtype(model, dtype) {
  const row = ROWS[dtype];
  if (!row || (row.kind === "csa" && model.kind === "csa")) return dtype;
  const fits = row.kind === "mla" && model.kv_lora_rank !== null && model.kv_lora_rank % row.multiple === 0n;
  return fits ? dtype : "fp8";
}

function own_model(own) {
  const { num_layers: layers, num_parameters, ...dims } = own;
  const { num_attention_heads, num_key_value_heads, head_dim, kv_lora_rank, qk_rope_head_dim } = dims;
  const common = { hidden_size: num_attention_heads * head_dim, num_attention_heads };
  const widths = { q_lora_rank: null, qk_nope_head_dim: head_dim, qk_rope_head_dim, v_head_dim: head_dim };
  const config = kv_lora_rank
    ? { ...common, kv_lora_rank, ...widths }
    : { ...common, num_key_value_heads, head_dim, qkv_bias: false, o_bias: false };
  const heads = kv_lora_rank ? 1n : num_key_value_heads;
  return {
    name: OWN,
    title: "Your model",
    kind: kind(config),
    num_parameters: num_parameters || null,
    weights: { attention: "bf16", others: "bf16" },
    num_attention_heads,
    num_layers: layers,
    kv_lora_rank: kv_lora_rank || null,
    qk_rope_head_dim,
    config,
    cache: [{ role: "kv", layers, elements: elements_per_token(config), window: null, stride: 1n, heads }],
    state_elements: 0n,
    state_heads: 1n,
    shared_state_elements: 0n,
  };
}

function what_if(model) {
  const { config } = model;
  const alike = (group) => group.role !== "kv" || group.elements === elements_per_token(config);
  if (!config || !model.cache.every(alike)) return {};
  const d = config.head_dim;
  const key_and_value = is_mla(config) ? config.qk_nope_head_dim + config.qk_rope_head_dim + config.v_head_dim : 2n * d;
  const mla = is_mla(config) ? config : { kv_lora_rank: 4n * d, qk_rope_head_dim: (d / 4n) * 2n };
  const with_elements = (elements, heads, config = null) => ({
    ...model,
    config,
    kv_lora_rank: config?.kv_lora_rank ?? null,
    qk_rope_head_dim: config?.qk_rope_head_dim ?? null,
    cache: model.cache.map((group) => (group.role === "kv" ? { ...group, elements, heads } : group)),
  });
  const heads = config.num_attention_heads;
  return {
    mha: with_elements(heads * key_and_value, heads),
    ...(heads % 8n === 0n && { "gqa-8": with_elements(8n * key_and_value, 8n) }),
    mqa: with_elements(key_and_value, 1n),
    mla: with_elements(elements_per_token(mla), 1n, mla),
  };
}

function quantities(model, { gpu, tokens, batch, dtype, gpus, weights }) {
  const own_dtype = cache_dtype(model, dtype);
  const weights_dtype = weights === PUBLISHED ? null : weights;
  const per_sequence = sequence_bytes(model, tokens, own_dtype);
  const reading = { flop_per_s: 1, bytes_per_s: Number(gpu.bandwidth) };
  const on_each = (layout) => {
    if (!allowed(model, layout)) return null;
    const room = fit(model, gpu, tokens, layout, batch, own_dtype, weights_dtype);
    return {
      weight_bytes: null,
      max_sequences: null,
      max_tokens: null,
      ...room,
      bytes_per_sequence: share_total(sequence_share(model, tokens, layout, own_dtype)),
      copies: cache_copies(model, layout),
    };
  };
  return {
    dtype: own_dtype,
    weights: weight_formats(model, weights_dtype),
    bytes_per_token: kv_cache_bytes(model, 1n, 1n, own_dtype),
    bytes_per_sequence: per_sequence,
    bytes_total: batch * per_sequence,
    tokens_per_s: per_sequence ? 1 / step_seconds({ flops: 0n, bytes: per_sequence }, reading) : null,
    weight_bytes: weight_bytes(model, weights_dtype),
    on_each: Object.fromEntries(Object.entries(layouts(gpus)).map(([way, layout]) => [way, on_each(layout)])),
  };
}
