// One model on many GPUs, in the browser: its numbers, a box for each GPU, then the view.

// As in kv_cache_explorer.py: a row format where the latent's width allows it, else plain fp8
const cache_dtype = ({ kv_lora_rank }, dtype) =>
  !ROWS[dtype] || kv_lora_rank % ROWS[dtype].multiple === 0n ? dtype : "fp8";

const NOTHING = {
  weight_bytes: null,
  cache_bytes: null,
  copies: null,
  state_bytes: null,
  attention_bytes: null,
  max_sequences: null,
  max_tokens: null,
};

function quantities(model, gpu, { gpus, layout_name, tokens, batch, dtype }) {
  const layout = layouts(gpus)[layout_name];
  if (!allowed(model, layout)) return NOTHING;
  const own_dtype = cache_dtype(model, dtype);
  const { weight_bytes, max_sequences, max_tokens } = fit(model, gpu, tokens, layout, batch, own_dtype);
  const { states, attention } = step_bytes(model, layout, batch);
  return {
    weight_bytes,
    cache_bytes: ceil_div(batch, layout.data) * share_total(sequence_share(model, tokens, layout, own_dtype)),
    copies: cache_copies(model, layout),
    state_bytes: states,
    attention_bytes: attention,
    max_sequences,
    max_tokens,
  };
}

const WAYS = {
  tensor: "heads (tensor parallel)",
  data: "sequences (data parallel)",
  context: "tokens (context split)",
};
const DEALT = { tensor: "heads", data: "sequences", context: "tokens" };
const such = (number) => `${number === 0n ? "no" : count(number)} such sequence${number === 1n ? "" : "s"}`;

function sentence(model, gpu, found, { gpus, layout_name }) {
  if (found.weight_bytes === null) {
    return `${count(gpus)} GPUs are more than the ${count(model.num_attention_heads)} heads of ${model.title}: one would have none.`;
  }
  const full = found.weight_bytes + found.cache_bytes > gpu.memory;
  const kept = `keeps ${size(found.weight_bytes)} of weights and ${size(found.cache_bytes)} of cache`;
  const copies = found.copies === 1n ? "kept once" : `kept ${count(found.copies)} times`;
  const [whose, room] = gpus === 1n ? ["The GPU", ""] : [`With ${DEALT[layout_name]} dealt out, each GPU`, ", at most"];
  return (
    `${whose} ${kept}${room}; ${full ? "that is more than it has" : "that fits"}. The cache is ${copies}. ` +
    `Beside the weights there is room for ${such(found.max_sequences)}.`
  );
}

// --- a box for each GPU, as high as its memory: weights below, cache on top of them

const BOX = { width: 36, height: 96, across: 45, down: 118, columns: 8 };

// Sequences that a GPU takes part in
const on_gpu = (place, { gpus, layout_name, batch }) =>
  layout_name === "data" ? batch / gpus + (BigInt(place) < batch % gpus ? 1n : 0n) : batch;

function boxes(gpu, found, asked) {
  const most = on_gpu(0, asked);
  return Array.from({ length: Number(asked.gpus) }, (_, place) => {
    const [x, y] = [2 + (place % BOX.columns) * BOX.across, 2 + Math.floor(place / BOX.columns) * BOX.down];
    const cache = found.cache_bytes === null ? 0n : (found.cache_bytes / most) * on_gpu(place, asked);
    const weights = found.weight_bytes ?? 0n;
    const high = (bytes) => (BOX.height * Math.min(Number(bytes), Number(gpu.memory))) / Number(gpu.memory);
    const [low, top] = [high(weights), high(weights + cache)];
    const full = weights + cache > gpu.memory;
    const part = (from, to, fill) =>
      svg("rect", { x, y: y + BOX.height - to, width: BOX.width, height: Math.max(to - from, 0), fill });
    const edge = { fill: "none", stroke: full ? "var(--key)" : "var(--quiet)", "stroke-width": full ? 2.5 : 1 };
    return svg(
      "g",
      { "data-gpu": place, "data-bytes": weights + cache },
      part(0, low, "var(--bar)"),
      part(low, top, "var(--key)"),
      svg("rect", { x, y, width: BOX.width, height: BOX.height, ...edge }),
      svg(
        "text",
        { x: x + BOX.width / 2, y: y + BOX.height + 13, "text-anchor": "middle" },
        found.weight_bytes === null ? "–" : count(Math.round(Number(weights + cache) / 1e9)),
      ),
    );
  });
}

// --- the view

const LABELS = { gpus: "GPUs", tokens: "tokens in a sequence", batch: "sequences at once" };
const SETTINGS = ["model", "gpu", "gpus", "layout_name", "tokens", "batch", "dtype"];

function render(given) {
  const { model } = given;
  const data = JSON.parse(model.get("data"));
  const { models, gpus } = exact(data);
  const names = (entries) => entries.map(({ name }) => name);
  const shared = {
    model: { label: "model", choices: names(models) },
    layout_name: { label: "dealt out", choices: Object.keys(WAYS) },
    dtype: { label: "cache format", choices: data.dtypes.map(([dtype]) => dtype) },
    gpu: { label: "GPU", choices: names(gpus) },
    ...Object.fromEntries(Object.entries(LABELS).map(([name, label]) => [name, { label, limits: data.limits[name] }])),
  };
  const view = new View(given, "many-gpus", "One model on many GPUs", shared);
  const answers = h("dl");
  const picture = svg("svg", { role: "img" });
  const about = h("p", { class: "mla-part-quiet mla-part-about" });
  const titles = (entries) => options(entries.map(({ name, title }) => [name, title]));
  const number = (name, slider) =>
    view.number_field({ name, label: LABELS[name], limits: data.limits[name], slider, step: 0.5 });
  const fields = [
    view.picker({ name: "model", label: "model", choices: titles(models) }),
    view.picker({ name: "layout_name", label: "dealt out", choices: options(Object.entries(WAYS)) }),
    view.picker({ name: "dtype", label: "cache format", choices: options(data.dtypes) }),
    view.picker({ name: "gpu", label: "each a", choices: titles(gpus) }),
    number("gpus", "linear"),
    number("batch", "log"),
    number("tokens", "log"),
  ];

  function paint() {
    const asked = exact(Object.fromEntries(SETTINGS.map((name) => [name, model.get(name)])));
    const entry = models.find(({ name }) => name === asked.model);
    const gpu = gpus.find(({ name }) => name === asked.gpu);
    const found = quantities(entry, gpu, asked);
    for (const field of fields) field.paint();
    view.say(sentence(entry, gpu, found, asked));
    answers.replaceChildren(
      quantity("weights on each", "weight_bytes", found.weight_bytes, size, "–"),
      quantity("cache on each, at most", "cache_bytes", found.cache_bytes, size, "–"),
      quantity("GPUs that keep the same cache", "copies", found.copies, count, "–"),
      quantity("a step: states received", "state_bytes", found.state_bytes, size, "–"),
      quantity("a step: for attention", "attention_bytes", found.attention_bytes, size, "–"),
      quantity("such sequences that fit", "max_sequences", found.max_sequences, count, "–"),
      quantity("tokens that fit in each", "max_tokens", found.max_tokens, count, "–"),
    );
    const rows = Math.ceil(Number(asked.gpus) / BOX.columns);
    picture.setAttribute("viewBox", `0 0 ${PLOT.width} ${rows * BOX.down}`);
    picture.replaceChildren(...boxes(gpu, found, asked));
    picture.setAttribute("aria-label", `The memory of each GPU and what it holds. ${view.summary.textContent}`);
    about.textContent =
      `A box is the ${size(gpu.memory)} of one GPU; grey: weights, as ${entry.title} is published; orange: cache; ` +
      "below it: GB in all. An edge in orange: more than the GPU has. Received: by each GPU, through all layers, when " +
      "each sequence gets one token. Activations and buffers are left out.";
  }

  const answer = h("div", { class: "mla-part-answer" }, picture, answers);
  return view.show(SETTINGS, paint, controls(fields), view.note, view.summary, answer, about);
}

export default { render };
