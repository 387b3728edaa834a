// How a widget looks: text that is faint or small, and what sticks out of it or moves the page sideways.
(root) => {
  const channels = (colour) => (colour.match(/[\d.]+/g) ?? []).map(Number);
  const luminance = (rgb) => {
    const [r, g, b] = rgb.map((c) => (c / 255 <= 0.04045 ? c / 255 / 12.92 : ((c / 255 + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const background = (element) => {
    for (let node = element; node; node = node.parentElement) {
      const colour = channels(getComputedStyle(node).backgroundColor);
      if (colour.length < 4 || colour[3] > 0.5) return colour;
    }
    return [255, 255, 255];
  };
  const ink = (e) => (e.namespaceURI.endsWith("svg") ? getComputedStyle(e).fill : getComputedStyle(e).color);
  const contrast = (e) => {
    const both = [channels(ink(e)), background(e)].map((c) => luminance(c.slice(0, 3)) + 0.05);
    return Math.max(...both) / Math.min(...both);
  };
  const right = (element) => element.getBoundingClientRect().right;
  const has_text = (e) => e.matches("select, input[type=number]") || [...e.childNodes].some((n) => n.nodeType === 3);
  const seen = [...root.querySelectorAll("*")].filter((e) => e.getClientRects().length);
  return {
    faint: seen.filter((e) => has_text(e) && contrast(e) < 4.5).map((e) => `${contrast(e)} ${e.outerHTML}`),
    small: [...root.querySelectorAll("svg text")].filter((e) => e.getBoundingClientRect().height < 10).length,
    moved: seen.filter((e) => e.matches("dl, dt, dd") && parseFloat(getComputedStyle(e).marginLeft)).length,
    outside: seen.filter((e) => right(e) > right(root) + 1).map((e) => e.outerHTML),
    sideways: document.documentElement.scrollWidth - innerWidth,
  };
};
