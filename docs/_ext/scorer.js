// Search shows how to do something before why it was decided: decisions and tables of figures come last.
var Scorer = {
  score: ([page, , , , score]) => (/^(adr|explanation\/tables)\//.test(page) ? score - 1000 : score),
  // The rest is as Sphinx has it.
  objNameMatch: 11,
  objPartialMatch: 6,
  objPrio: { 0: 15, 1: 5, 2: -5 },
  objPrioDefault: 0,
  title: 15,
  partialTitle: 7,
  term: 5,
  partialTerm: 2,
};
