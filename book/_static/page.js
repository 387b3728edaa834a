// The menus above an article, tab stops for formulas that are wider than the page, and the light palette on paper.

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

  // What scrolls sideways must be within reach of a keyboard.
  function markWide() {
    for (const formula of document.querySelectorAll("div.math")) {
      if (formula.scrollWidth > formula.clientWidth) formula.tabIndex = 0;
      else formula.removeAttribute("tabindex");
    }
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

  addEventListener("load", markWide);
  addEventListener("resize", markWide);
}
