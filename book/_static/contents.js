// Marks, in the contents beside an article, the section that is being read. The theme's own marks a heading that comes
// into sight, and so leaves the mark where it was when one scrolls up, jumps, or reads a short section at the end.

{
  const nav = document.getElementById("pst-page-toc-nav");
  const links = nav ? [...nav.querySelectorAll('a[href^="#"]')] : [];
  const sections = links
    .map((link) => ({ link, section: document.getElementById(decodeURIComponent(link.hash.slice(1))) }))
    .filter(({ section }) => section !== null);
  const CALM = 1000; // milliseconds in which a link that was followed keeps the mark
  let [followed, asked] = [Number.NEGATIVE_INFINITY, false];

  // What is above this line has been begun. Near the end of a page it sinks to the foot of the window.
  function heightOfLine() {
    const { scrollHeight, clientHeight } = document.documentElement;
    return Math.max(0.3 * clientHeight, clientHeight - (scrollHeight - clientHeight - scrollY));
  }

  function mark(active) {
    for (const link of links) {
      link.classList.toggle("active", link === active);
      if (link === active) link.setAttribute("aria-current", "true");
      else link.removeAttribute("aria-current");
    }
    for (const entry of nav.querySelectorAll(".toc-entry")) {
      entry.classList.toggle("active", active !== undefined && entry.contains(active));
    }
  }

  function markWhatIsRead() {
    asked = false;
    if (performance.now() - followed < CALM) return;
    const line = heightOfLine();
    const begun = sections.findLast(({ section }) => section.getBoundingClientRect().top <= line);
    if (!begun?.link.classList.contains("active")) mark(begun?.link);
  }

  function soon() {
    if (!asked) requestAnimationFrame(markWhatIsRead);
    asked = true;
  }

  function follow(hash) {
    const found = sections.find(({ link }) => link.hash === hash);
    if (!found) return;
    followed = performance.now();
    mark(found.link);
  }

  if (sections.length) {
    addEventListener("scroll", soon, { passive: true });
    addEventListener("resize", soon);
    addEventListener("hashchange", () => follow(location.hash));
    nav.addEventListener("click", (event) => {
      const link = event.target.closest("a");
      if (link) follow(link.hash);
    });
    follow(location.hash);
    soon();
  }
}
