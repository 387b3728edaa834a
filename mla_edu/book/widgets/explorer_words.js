// What the cache explorer says.

const KINDS = {
  mla: "Latent attention (MLA)",
  mha: "Multi-head (MHA)",
  gqa: "Grouped-query (GQA)",
  mqa: "Multi-query (MQA)",
  csa: "Compressed sparse (CSA)",
};
const DTYPES = {
  fp32: "fp32, 4 bytes",
  fp16: "fp16, 2 bytes",
  bf16: "bf16, 2 bytes",
  fp8: "fp8, 1 byte",
  fp8_mla: "fp8 with scales, 656 bytes (MLA)",
  fp4_mla_432: "fp4, 432 bytes (MLA)",
  fp4_mla_368: "fp4, 368 bytes (MLA)",
  fp4_mla_352: "fp4, 352 bytes (MLA)",
  fp8_csa: "fp8, 584 bytes (DeepSeek-V4)",
};
const WEIGHTS = {
  [PUBLISHED]: "as published",
  fp32: "fp32, 4 bytes",
  fp16: "fp16, 2 bytes",
  bf16: "bf16, 2 bytes",
  fp8: "fp8, 1 byte",
  fp4: "fp4 (MXFP4)",
  int4: "int4",
};
const LABELS = {
  tokens: "tokens in a sequence",
  batch: "sequences at once",
  gpus: "GPUs of that kind",
  num_layers: "layers",
  num_attention_heads: "query heads",
  num_key_value_heads: "key/value heads",
  head_dim: "width of a head",
  kv_lora_rank: "latent (0: none)",
  qk_rope_head_dim: "rotary key",
  num_parameters: "parameters (0: unknown)",
};

const WITH = { tensor: "tensor parallelism", data: "data-parallel attention", context: "a context split" };

const such = (number) =>
  ({ null: "any number of such sequences", 0: "no such sequence", 1: "one such sequence" })[number] ??
  `${count(number)} such sequences`;
const as_many = (number) => ({ null: "any number", 0: "none" })[number] ?? count(number);

function sentence(entry, found, { gpu, gpus, tokens }) {
  const cost =
    `${entry.title} keeps ${size(found.bytes_per_token)} for a token and ${size(found.bytes_per_sequence)} ` +
    `for a sequence of ${count(tokens)} token${tokens === 1n ? "" : "s"}.` +
    (found.tokens_per_s === null
      ? ""
      : ` Read in full for each new token, that is at most ${digits(found.tokens_per_s)} tokens/s from one GPU, weights aside.`);
  const known = Object.entries(found.on_each).filter(([, each]) => each !== null && each.weight_bytes !== null);
  const on = `${count(gpus)} × ${gpu.title}`;
  if (!known.length) return `${cost} What fits on ${on} is not known.`;
  const rooms = known.map(
    ([way, { max_sequences }], i) => `for ${(i ? as_many : such)(max_sequences)} with ${WITH[way]}`,
  );
  return `${cost} On ${on}, beside their weights, there is room ${rooms.join(", ")}.`;
}

const written = ({ attention, others }) => (attention === others ? others : `${others}, attention ${attention}`);

function remark(shown, { dtype, gpus }) {
  const said = [
    "Bars: one sequence. Per token: what the first token takes. 1 GB = 10⁹ bytes; recurrent states in fp32.",
    "On each GPU: tensor shares out the heads, and every GPU keeps the whole of a latent; data shares out the " +
      "sequences, and copies the attention’s weights; context shares out the tokens of each sequence. Copies: GPUs " +
      "that keep the same. Fit: such sequences, on all GPUs. Tokens: how long each of the sequences at once may become.",
  ];
  const known = shown.filter(([, { weights }]) => weights !== null);
  if (known.length)
    said.push(`Weights: ${known.map(([{ title }, found]) => `${title} ${written(found.weights)}`).join("; ")}.`);
  const unknown = shown.filter(([, { weights }]) => weights === null).map(([{ title }]) => title);
  if (unknown.length) said.push(`In which format they are published is not known: ${unknown.join(", ")}.`);
  const plain = shown.filter(([, found]) => found.dtype !== dtype).map(([entry]) => entry.title);
  if (plain.length) said.push(`That cache format is for other attention; counted in plain fp8: ${plain.join(", ")}.`);
  const few = shown.filter(([, { on_each }]) => Object.values(on_each).includes(null)).map(([entry]) => entry.title);
  if (few.length) said.push(`${count(gpus)} GPUs are more than the heads: ${few.join(", ")}.`);
  return said.join(" ");
}
