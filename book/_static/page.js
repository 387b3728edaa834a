// The menus above an article, the switch that wraps lines of code, tab stops for formulas that are wider than the page,
// and the light palette on paper.

{
  const toggles = [...document.querySelectorAll('[data-bs-toggle="dropdown"]')];

  function show(toggle, open) {
    toggle.setAttribute("aria-expanded", String(open));
    toggle.nextElementSibling.classList.toggle("show", open);
  }

  document.addEventListener("click", (event) => {
    for (const toggle of toggles) {
      show(toggle, toggle.contains(event.target) && toggle.getAttribute("aria-expanded") !== "true");
    }
  });

  for (const toggle of toggles) {
    const menu = toggle.parentElement;
    menu.addEventListener("keydown", (event) => {
      if (event.key !== "Escape" || toggle.getAttribute("aria-expanded") !== "true") return;
      show(toggle, false);
      toggle.focus();
    });
    menu.addEventListener("focusout", (event) => {
      if (event.relatedTarget && !menu.contains(event.relatedTarget)) show(toggle, false);
    });
  }

  // The choice is kept for all pages; layout.html reads it before anything is drawn.
  const buttons = document.querySelector(".article-header-buttons");
  if (buttons && document.querySelector(".bd-article div.highlight:not(.cell_output *) pre")) {
    const wrap = document.createElement("button");
    Object.assign(wrap, { type: "button", className: "btn btn-sm mla-wrap", title: "Wrap lines of code" });
    wrap.setAttribute("aria-pressed", String("wrap" in document.documentElement.dataset));
    wrap.innerHTML =
      '<svg class="mla-icon" viewBox="0 0 24 24" aria-hidden="true"><path d="M3 5h18M3 12h14a3.5 3.5 0 0 1 0 7h-4M16 16l-3 3 3 3M3 19h5"/></svg>';
    wrap.addEventListener("click", () => {
      const on = wrap.getAttribute("aria-pressed") !== "true";
      wrap.setAttribute("aria-pressed", String(on));
      if (on) document.documentElement.dataset.wrap = "on";
      else delete document.documentElement.dataset.wrap;
      if (on) localStorage.setItem("wrap", "on");
      else localStorage.removeItem("wrap");
      markWide();
    });
    buttons.prepend(wrap);
  }

  // What scrolls sideways must be within reach of a keyboard. All is measured before anything is marked, and nothing in a
  // shut fold: for each of these a browser lays out anew.
  function markWide() {
    const boxes = [
      ...document.querySelectorAll("pre, .cell_output > .output, .pst-scrollable-table-container, div.math"),
    ].filter((box) => !box.closest("details:not([open])"));
    const wide = boxes.map((box) => box.scrollWidth > box.clientWidth);
    boxes.forEach((box, i) => {
      if (wide[i]) box.tabIndex = 0;
      else box.removeAttribute("tabindex");
    });
  }

  const { dataset } = document.documentElement;
  let theme = dataset.theme;
  addEventListener("beforeprint", () => {
    theme = dataset.theme;
    dataset.theme = "light";
  });
  addEventListener("afterprint", () => {
    dataset.theme = theme;
  });

  // The width of an article changes with the window's and, for a moment longer, while a side bar slides in.
  let waiting;
  function markWideSoon() {
    clearTimeout(waiting);
    waiting = setTimeout(markWide, 100);
  }
  const article = document.querySelector("article");
  if (article) new ResizeObserver(markWideSoon).observe(article);
  addEventListener("load", markWide);
  document.fonts.addEventListener("loadingdone", markWideSoon);
  document.addEventListener("toggle", markWide, true);
}
