// How the search ranks: the reference comes after the book, unless a name of the package was asked for.

{
  const isName = /[._]|[a-z][A-Z]/.test(new URLSearchParams(location.search).get("q") ?? "");

  globalThis.Scorer = {
    score: ([docname, , , , score]) => (docname.startsWith("book/api/") && !isName ? score / 100 : score),
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
