// What travels in a decode step, in bytes received: mla_edu.cost.traffic, for layers with MLA.

const ACTIVATION = 2n;
const LSE = 4n;

const all_reduce_bytes = ({ hidden_size }, ranks, num_tokens) =>
  ceil_div(2n * (ranks - 1n) * num_tokens * hidden_size * ACTIVATION, ranks);

const gather_bytes = ({ hidden_size }, ranks, num_tokens) => 2n * (ranks - 1n) * num_tokens * hidden_size * ACTIVATION;

function context_bytes({ num_attention_heads, kv_lora_rank, qk_rope_head_dim }, ranks, num_tokens) {
  const others = num_tokens * (ranks - 1n) * ceil_div(num_attention_heads, ranks);
  return {
    queries: others * (kv_lora_rank + qk_rope_head_dim) * ACTIVATION,
    lse: others * ranks * LSE,
    outputs: others * kv_lora_rank * ACTIVATION,
  };
}

function step_bytes({ config, num_layers, cache }, layout, batch_size) {
  if (layout.data > 1n) {
    const on_each = ceil_div(batch_size, layout.data);
    return { states: num_layers * gather_bytes(config, layout.data, on_each), attention: 0n };
  }
  const { queries, lse, outputs } = context_bytes(config, layout.context, batch_size);
  const latents = cache.reduce((sum, { layers }) => sum + layers, 0n);
  return {
    states: 2n * num_layers * all_reduce_bytes(config, group_of(layout), batch_size),
    attention: latents * (queries + lse + outputs),
  };
}
