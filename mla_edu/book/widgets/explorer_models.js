// The models of the cache explorer: the reader's own, and a model with another attention, as in kv_cache_explorer.py.

const OWN = "own";

// What the reader gives, with the first value of what is not given
const own_dims = (own_limits, own) => ({
  ...Object.fromEntries(Object.entries(own_limits).map(([name, [, , , first]]) => [name, first])),
  ...own,
});

function cache_dtype(model, dtype) {
  if (dtype !== "fp8_mla") return dtype;
  return model.kv_lora_rank !== null && model.kv_lora_rank % FP8_BLOCK === 0n ? "fp8_mla" : "fp8";
}

function own_model(own) {
  const { num_layers: layers, num_parameters, ...dims } = own;
  const { num_attention_heads, num_key_value_heads, head_dim, kv_lora_rank, qk_rope_head_dim } = dims;
  const config = kv_lora_rank
    ? { num_attention_heads, kv_lora_rank, qk_nope_head_dim: head_dim, qk_rope_head_dim, v_head_dim: head_dim }
    : { num_attention_heads, num_key_value_heads, head_dim };
  return {
    name: OWN,
    title: "Your model",
    kind: kind(config),
    num_parameters: num_parameters || null,
    kv_lora_rank: kv_lora_rank || null,
    qk_rope_head_dim,
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
  const key_and_value = is_mla(config) ? config.qk_nope_head_dim + config.qk_rope_head_dim + config.v_head_dim : 2n * d;
  const mla = is_mla(config) ? config : { kv_lora_rank: 4n * d, qk_rope_head_dim: (d / 4n) * 2n };
  const with_elements = (elements, config = null) => ({
    ...model,
    config,
    kv_lora_rank: config?.kv_lora_rank ?? null,
    qk_rope_head_dim: config?.qk_rope_head_dim ?? null,
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
  const nothing = { num_gpus: null, free_bytes: null, max_sequences: null, max_tokens: null };
  return {
    dtype: own_dtype,
    bytes_per_token: kv_cache_bytes(model, 1n, 1n, own_dtype),
    bytes_per_sequence: per_sequence,
    bytes_total: batch * per_sequence,
    weight_bytes: weight_bytes(model),
    ...(fit(model, gpu, tokens, batch, own_dtype) ?? nothing),
  };
}
