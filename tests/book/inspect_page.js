// Runs in the page, at 390 pixels and in dark mode, and reports what is wrong with it.
() => {
  const inArticle = (selector) => [...document.querySelectorAll(selector)];
  const brief = (element) => element.outerHTML.replace(/\s+/g, " ").slice(0, 160);

  // Formulas
  const unrendered = inArticle("span.math, div.math").filter((math) => !math.querySelector(".katex-html"));
  const walker = document.createTreeWalker(document.querySelector("article") ?? document.body, NodeFilter.SHOW_TEXT);
  const raw = [];
  while (walker.nextNode()) {
    const text = walker.currentNode;
    if (text.parentElement.closest("pre, code, script, style, .katex, svg")) continue;
    if (
      /\\[([]|\\[)\]]|\$\$|\{[a-z:-]+\}`|\\(frac|sqrt|mathrm|top|cdot|sum)\b|\$[^\s$][^$]*[\\_^][^$]*\$/.test(text.data)
    ) {
      raw.push(text.data.trim().slice(0, 120));
    }
  }

  // Letters of formulas in a font that is not there
  const numbers = { normal: "400", bold: "700" };
  const named = (family, weight, style) => `${family} ${numbers[weight] ?? weight} ${style}`.replaceAll('"', "");
  const there = new Set([...document.fonts].map((face) => named(face.family, face.weight, face.style)));
  const wanted = inArticle(".katex-html *")
    .filter((element) => [...element.childNodes].some((node) => node.nodeType === 3 && /[^\s\u200b]/.test(node.data)))
    .map((element) => getComputedStyle(element))
    .map((css) => named(css.fontFamily.split(",")[0], css.fontWeight, css.fontStyle));
  const fontless = [...new Set(wanted)].filter((font) => !there.has(font));

  // Pictures
  const unnamed = [
    ...inArticle("article img").filter(
      (img) => !img.getAttribute("alt") && img.getAttribute("role") !== "presentation",
    ),
    ...inArticle("article svg").filter(
      (svg) =>
        svg.getAttribute("aria-hidden") !== "true" &&
        !svg.closest(".katex, button, .mla-widget") &&
        !(svg.getAttribute("role") === "img" && svg.getAttribute("aria-label")?.trim()),
    ),
  ];

  // Contrast, by WCAG's formula, against the first background that is not transparent
  const channels = (colour) => colour.match(/[\d.]+/g).map(Number);
  const luminance = ([red, green, blue]) => {
    const linear = [red, green, blue].map((c) =>
      c / 255 <= 0.04045 ? c / 255 / 12.92 : ((c / 255 + 0.055) / 1.055) ** 2.4,
    );
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2];
  };
  const background = (element) => {
    for (let node = element; node; node = node.parentElement) {
      const colour = channels(getComputedStyle(node).backgroundColor);
      if (colour.length < 4 || colour[3] > 0.5) return colour;
    }
    return [255, 255, 255];
  };
  const contrast = (element, property) => {
    const colour = channels(getComputedStyle(element)[property]);
    const [low, high] = [luminance(colour), luminance(background(element))].sort((a, b) => a - b);
    return (high + 0.05) / (low + 0.05);
  };
  const visible = (element) => element.getClientRects().length > 0 && element.textContent.trim() !== "";
  const ownText = (element) => [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
  const faint = [
    ...inArticle("article :is(p, li, td, th, dt, dd, a, span, code, figcaption, h1, h2, h3, em, strong)")
      .filter((element) => ownText(element) && visible(element) && !element.closest(".katex, svg, .mla-widget"))
      .filter((element) => contrast(element, "color") < 4.5)
      .map((element) => `${contrast(element, "color").toFixed(2)} ${brief(element)}`),
    ...inArticle("article svg[role=img] text")
      .filter((element) => visible(element) && contrast(element, "fill") < 3)
      .map((element) => `${contrast(element, "fill").toFixed(2)} ${brief(element)}`),
  ];
  // Links within text that differ from it by a colour alone, and by little of that
  const between = (a, b) => {
    const [low, high] = [a, b]
      .map((element) => luminance(channels(getComputedStyle(element).color)))
      .sort((x, y) => x - y);
    return (high + 0.05) / (low + 0.05);
  };
  const marked = (element) => {
    const css = getComputedStyle(element);
    return css.textDecorationLine.includes("underline") || Number.parseFloat(css.borderBottomWidth) > 0;
  };
  const hidden = inArticle(":is(p:not(.admonition-title), li, td, dd, figcaption) a:not(.headerlink)").filter(
    (link) =>
      visible(link) &&
      getComputedStyle(link).display === "inline" &&
      link.parentElement.textContent.length > 2 * link.textContent.length &&
      ![link, ...link.querySelectorAll("*")].some(marked) &&
      between(link, link.parentElement) < 3,
  );

  const cards = inArticle("article :is(figure, img, svg[role=img], .cell_output)").filter(
    (element) => document.documentElement.dataset.theme === "dark" && luminance(background(element)) > 0.2,
  );

  // How far a page goes on below the end of its last footer; a page that fits the window has nothing below
  const { scrollHeight } = document.documentElement;
  const ends = inArticle("footer").map((footer) => footer.getBoundingClientRect().bottom + window.scrollY);
  const below = scrollHeight > window.innerHeight ? Math.max(0, Math.floor(scrollHeight - Math.max(...ends))) : 0;

  return {
    below,
    unrendered: [...unrendered.map(brief), ...raw],
    fontless,
    unnamed: unnamed.map(brief),
    faint,
    hidden: hidden.map(brief),
    cards: cards.map(brief),
    overflow: document.documentElement.scrollWidth - window.innerWidth,
    requirejs: typeof window.requirejs !== "undefined" || inArticle("script[src*='require']").length > 0,
    copyButtons: inArticle("article .cell_input .copybtn").length,
    inputCells: inArticle("article .cell_input").length,
    formulas: inArticle(".katex").length,
    formulaStops: inArticle(".katex a, .katex [tabindex]").length,
    icons: inArticle("i[class*=fa-], span[class*=fa-]").map(brief),
  };
};
