// The crossover of expanded and absorbed attention in the browser: words and the curve, then the view.

function quantities(config, new_tokens, cached_tokens) {
  const [expanded_macs, absorbed_macs] = ["expanded", "absorbed"].map((mode) =>
    attention_macs(config, new_tokens, cached_tokens + new_tokens, mode),
  );
  const ratio = Number(absorbed_macs) / Number(expanded_macs);
  return { expanded_macs, absorbed_macs, ratio, crossover: absorption_crossover(config, cached_tokens) };
}

const tokens = (number, kind) => `${count(number)} ${kind} token${number === 1n ? "" : "s"}`;

function sentence({ expanded_macs, absorbed_macs, ratio, crossover }, cached_tokens) {
  const compare =
    expanded_macs === absorbed_macs
      ? "Both cost the same here."
      : `${ratio < 1 ? "Expanded" : "Absorbed"} costs ${digits(Math.max(ratio, 1 / ratio))} times as much here.`;
  if (crossover === null) return `${compare} With a latent this narrow absorbed never costs more.`;
  const cached = cached_tokens ? `Behind ${tokens(cached_tokens, "cached")}` : "Over an empty cache";
  return crossover
    ? `${compare} ${cached} absorbed costs no more up to ${tokens(crossover, "new")}.`
    : `${compare} ${cached} expanded costs less from the first new token on.`;
}

const TICKS = ["1", "10", "100", "1k", "10k", "100k", "1M"].map((label, power) => [10 ** power, label]);
const NEWS = Array.from({ length: 81 }, (_, i) => BigInt(Math.round(2 ** (i / 4))));

function drawing(config, cached_tokens, new_tokens, found) {
  const at = (new_) => Math.log10(quantities(config, new_, cached_tokens).ratio);
  const heights = NEWS.map(at);
  const [low, high] = [Math.floor(Math.min(...heights, -0.01)), Math.ceil(Math.max(...heights, 0.01))];
  const across = scale([0, 20], [PLOT.left, PLOT.right]);
  const x = (new_) => across(Math.log2(Number(new_)));
  const y = scale([low, high], [PLOT.bottom, PLOT.top]);
  return [
    ...axes({
      x,
      y,
      x_ticks: TICKS,
      y_ticks: powers(low, high),
      x_name: "new tokens",
      y_name: "absorbed / expanded",
      base: 0,
    }),
    ...(found.crossover ? crossing(x(found.crossover), count(found.crossover), "crossover") : []),
    curve(
      NEWS.map((new_, i) => [x(new_), y(heights[i])]),
      { stroke: "var(--key)" },
    ),
    mark(x(new_tokens), y(at(new_tokens)), "var(--key)", "present"),
  ];
}

// --- the view

const LABELS = {
  kv_lora_rank: "width of the latent",
  new_tokens: "new tokens",
  cached_tokens: "cached tokens",
};

function render(given) {
  const { model } = given;
  const { models, limits } = JSON.parse(model.get("data"));
  const shared = {
    model: { label: "model", choices: models.map(({ name }) => name) },
    ...Object.fromEntries(Object.entries(LABELS).map(([name, label]) => [name, { label, limits: limits[name] }])),
  };
  const view = new View(given, "absorption-crossover", "Cost of expanded and absorbed attention", shared);
  const modes = h("div", { class: "mla-abx-modes" });
  const answers = h("dl");
  const picture = plot();
  const about = h("p", { class: "mla-part-quiet mla-part-about" });
  const entry_of = (name) => models.find((entry) => entry.name === name);

  const picker = view.picker({
    name: "model",
    label: "model",
    choices: options(models.map(({ name, title }) => [name, title])),
    take(name) {
      const { kv_lora_rank } = entry_of(name);
      view.set({ model: name, kv_lora_rank });
    },
  });
  const fields = Object.entries(LABELS).map(([name, label]) =>
    view.number_field({ name, label, limits: limits[name], slider: "log" }),
  );

  function paint() {
    const entry = entry_of(model.get("model"));
    const [kv_lora_rank, new_tokens, cached_tokens] = Object.keys(LABELS).map((name) => BigInt(model.get(name)));
    const config = { ...exact(entry), kv_lora_rank };
    const found = quantities(config, new_tokens, cached_tokens);
    const { expanded_macs, absorbed_macs } = found;
    const largest = expanded_macs > absorbed_macs ? expanded_macs : absorbed_macs;
    const row = (mode, macs) =>
      h(
        "div",
        { "data-mode": mode },
        h("dl", {}, quantity(`${mode}, multiply-adds`, `${mode}_macs`, macs, large)),
        bar(macs, largest),
      );

    for (const field of [picker, ...fields]) field.paint();
    view.say(sentence(found, cached_tokens));
    modes.replaceChildren(row("expanded", expanded_macs), row("absorbed", absorbed_macs));
    answers.replaceChildren(
      quantity("absorbed / expanded", "ratio", found.ratio, digits),
      quantity("they cross at, new tokens", "crossover", found.crossover, count, "never"),
    );
    picture.replaceChildren(...drawing(config, cached_tokens, new_tokens, found));
    picture.setAttribute("aria-label", `Absorbed over expanded against new tokens. ${view.summary.textContent}`);
    about.textContent =
      `One layer, between the query projections and the output projection, with ${entry.title}'s ` +
      `${count(entry.num_attention_heads)} heads, which change both costs alike, and widths: a head’s keys ` +
      `${entry.qk_nope_head_dim} + ${entry.qk_rope_head_dim}, its values ${entry.v_head_dim}. New tokens see the cached ` +
      "ones and themselves; every score is counted, also those that a causal mask hides.";
  }

  const answer = h("div", { class: "mla-part-answer" }, picture, answers);
  const settings = ["model", ...Object.keys(LABELS)];
  return view.show(settings, paint, controls([picker, ...fields]), view.note, view.summary, modes, answer, about);
}

export default { render };
