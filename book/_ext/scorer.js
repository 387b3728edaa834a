// How the search ranks: first the pages whose titles hold all that was asked for, last the reference, unless a name of
// the package was asked for.

{
  const asked = new URLSearchParams(location.search).get("q") ?? "";
  const words = asked.toLowerCase().split(/\s+/);
  const isName = /[._]|[a-z][A-Z]/.test(asked);

  globalThis.Scorer = {
    score([docname, title, , , score]) {
      if (isName) return score;
      if (docname.startsWith("book/api/")) return score / 100;
      return words.every((word) => title.split(" > ")[0].toLowerCase().includes(word)) ? score + 100 : score;
    },
    objNameMatch: 11,
    objPartialMatch: 6,
    objPrio: { 0: 15, 1: 5, 2: -5 },
    objPrioDefault: 0,
    title: 15,
    partialTitle: 7,
    term: 5,
    partialTerm: 2,
  };
}
