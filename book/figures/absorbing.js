// The drawing of absorption, alive. It stands inside its SVG and makes the controls below it.
// What each step costs comes from Python, as data-stages; here it is only added up.
(() => {
  const svg = document.currentScript.closest("svg");
  const stages = JSON.parse(svg.dataset.stages);
  const LAST = stages.length;
  const BRACKET = stages.findIndex(({ mode }) => mode === "absorbed") + 1; // the step that moves the matrices
  const [LEAST, MOST, FIRST] = [0, 20, 15]; // cached tokens, as powers of two
  const PACE = 1900; // milliseconds that a step stays while the drawing plays
  const KEYS = { step: "flow", tokens: "flow.tokens" }; // in the page's address
  const still = matchMedia("(prefers-reduced-motion: reduce)");
  const say = (number) => number.toLocaleString("en-US");
  const make = (tag, attributes = {}, ...children) => {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    element.append(...children);
    return element;
  };

  // Multiply-adds of one mode up to a step: for each cached token, and once
  function counted(mode, step) {
    const done = stages.slice(0, step).filter((stage) => stage.mode === mode);
    const sum = (each) => done.reduce((total, stage) => total + (stage.each === each ? stage.macs : 0), 0);
    return { each: sum(true), once: sum(false) };
  }
  const whole = ({ each, once }, tokens) => each * tokens + once;

  let [step, tokens, timer] = [LAST, 2 ** FIRST, null];

  // --- the address

  function restore() {
    const query = new URLSearchParams(location.search);
    const number = (name, lowest, highest) => {
      const text = query.get(name) ?? "";
      return /^\d{1,7}$/.test(text) && lowest <= Number(text) && Number(text) <= highest ? Number(text) : null;
    };
    step = number(KEYS.step, 0, LAST) ?? step;
    tokens = number(KEYS.tokens, 2 ** LEAST, 2 ** MOST) ?? tokens;
  }

  let writing = null; // browsers refuse an address that is written too often
  function write() {
    clearTimeout(writing);
    writing = setTimeout(() => {
      const query = new URLSearchParams(location.search);
      const settings = { [KEYS.step]: [step, LAST], [KEYS.tokens]: [tokens, 2 ** FIRST] };
      for (const [name, [value, usual]] of Object.entries(settings)) {
        if (value === usual) query.delete(name);
        else query.set(name, value);
      }
      const text = query.toString().replaceAll("%2C", ",");
      history.replaceState(history.state, "", `${location.pathname}${text && `?${text}`}${location.hash}`);
    }, 300);
  }

  // --- movement: each part of a step draws itself from 0 to 1, and at 1 is as the step leaves it

  let parts = [];
  const start = (delay, time, draw) => {
    const part = { from: performance.now() + delay, time, draw };
    draw(0);
    if (parts.push(part) === 1) requestAnimationFrame(tick);
  };
  function tick(now) {
    for (const part of parts) part.draw(Math.min(Math.max((now - part.from) / part.time, 0), 1));
    parts = parts.filter(({ from, time }) => now < from + time);
    if (parts.length) requestAnimationFrame(tick);
  }
  function finish() {
    for (const { draw } of parts) draw(1);
    parts = [];
  }

  const rows = (name) => [...svg.querySelectorAll(`[data-${name}]`)];
  const places = JSON.parse(svg.dataset.places);

  // A copy of a cached latent walks into the matrix and is gone
  function walk(latent, name, delay) {
    const copy = latent.cloneNode(true);
    const { y, height } = latent.getBBox();
    latent.after(copy);
    start(delay, 380, (part) => {
      const eased = part * part * (3 - 2 * part);
      copy.setAttribute("transform", `translate(0 ${(eased * (places[name] - y - height / 2)).toFixed(2)})`);
      copy.setAttribute("opacity", 1 - 0.4 * part);
      if (part === 1) copy.remove();
    });
  }

  // What a step brings comes in one after the other
  function stagger(elements, each, late) {
    elements.forEach((element, i) => {
      start(late + i * each, 150, (part) => element.setAttribute("opacity", part));
    });
  }

  function through(name, made) {
    rows("latent").forEach((latent, i) => {
      walk(latent, name, i * 200);
    });
    stagger(rows(made), 200, 380);
  }

  const meet = () => stagger(rows("cell"), 130, 0);
  const MOVES = { 1: () => through("uk", "key"), 2: meet, 3: () => through("uv", "value"), 7: meet };

  // --- the view

  const buttons = {};
  const button = (name, label, act) => {
    buttons[name] = make("button", { type: "button", name }, label);
    buttons[name].addEventListener("click", act);
    return buttons[name];
  };
  const told = make("p", { role: "status" });
  const totals = make("p", { "data-totals": "" });
  const amount = make("span");
  const slider = make("input", { type: "range", name: "flow-tokens", min: LEAST, max: MOST, step: 0.25 });

  function sentence() {
    if (step === 0) return "Nothing is counted yet. The cache holds a latent for each token.";
    const { words, macs, each } = stages[step - 1];
    const cost = macs ? `: ${say(macs)} multiply-adds${each ? " for each token" : ", once"}` : "";
    return `Step ${step} of ${LAST}. ${words}${cost}.`;
  }

  function paint(before = null) {
    const mode = step < BRACKET ? "expanded" : "absorbed";
    const moving = before !== null && !still.matches && step === before + 1;
    svg.dataset.mode = mode;
    svg.dataset.step = step;
    finish();
    for (const element of svg.querySelectorAll("[data-at]")) {
      element.classList.toggle("off", !element.dataset.at.split(" ").includes(`${step}`));
    }
    const sums = {};
    for (const name of ["expanded", "absorbed"]) {
      const shown = svg.querySelector(`[data-count="${name}"]`);
      const { each } = counted(name, step);
      sums[name] = whole(counted(name, step), tokens);
      shown.dataset.macs = each;
      shown.textContent = name === "absorbed" && mode === "expanded" ? "–" : say(each);
      const earlier = moving ? counted(name, before).each : each;
      if (earlier !== each) {
        start(0, 1300, (part) => (shown.textContent = say(Math.round(earlier + part * (each - earlier)))));
      }
    }
    if (moving) MOVES[step]?.();
    told.textContent = sentence();
    buttons.bracket.textContent = mode === "expanded" ? "Move the bracket" : "Move it back";
    amount.textContent = `${say(tokens)} cached token${tokens === 1 ? "" : "s"}`;
    slider.value = Math.log2(tokens);
    slider.setAttribute("aria-valuetext", say(tokens));
    const { expanded, absorbed } = sums;
    const { once } = counted("absorbed", step);
    const both = ["expanded ", total("expanded", expanded), ", absorbed ", total("absorbed", absorbed)];
    const fewer = step === LAST ? `: ${say(Number((expanded / absorbed).toPrecision(3)))} times fewer` : "";
    const with_once = once ? ` (${say(once)} of them once)` : "";
    totals.replaceChildren(
      step === LAST ? "In all, for one head: " : "So far, for one head: ",
      ...both,
      with_once,
      fewer,
      ".",
    );
  }
  const total = (mode, sum) => make("span", { "data-total": mode, "data-macs": sum }, say(sum));

  function stop() {
    clearTimeout(timer);
    timer = null;
    buttons.play.textContent = "Play";
  }

  function go(to) {
    const before = step;
    step = to;
    paint(before);
    write();
  }

  function play() {
    buttons.play.textContent = "Pause";
    go(step === LAST ? 0 : step + 1);
    timer = step === LAST ? null : setTimeout(play, step ? PACE : PACE / 3);
    if (timer === null) stop();
  }

  // What a reader asks for ends the playing
  const asked = (act) => () => {
    stop();
    act();
  };

  function reset() {
    tokens = 2 ** FIRST;
    go(LAST);
  }

  const bar = make(
    "div",
    {},
    button(
      "bracket",
      "",
      asked(() => bracket()),
    ),
    button("play", "Play", () => (timer ? stop() : play())),
    button(
      "step",
      "Step",
      asked(() => go(step === LAST ? 0 : step + 1)),
    ),
    button("reset", "Reset", asked(reset)),
    make("label", {}, amount, slider),
  );
  const bracket = () => go(step < BRACKET ? LAST : BRACKET - 1);
  slider.addEventListener("input", () => {
    tokens = Math.round(2 ** Number(slider.value));
    paint();
    write();
  });
  const group = { class: "mla-absorbing", role: "group", "aria-label": "Absorption, step by step" };
  restore();
  buttons.play.hidden = still.matches;
  still.addEventListener("change", () => {
    stop();
    buttons.play.hidden = still.matches;
  });
  paint();
  svg.after(make("div", group, bar, told, totals));
})();
