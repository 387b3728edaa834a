// Turns formulas, one a line of standard input, into HTML and MathML, one a line of standard output.
// Called by formulas.py: node formulas.js FOLDER_OF_KATEX

const { createInterface } = require("node:readline");
const katex = require(process.argv[2]);

createInterface({ input: process.stdin }).on("line", (line) => {
  const { tex, display } = JSON.parse(line);
  let answer;
  try {
    answer = { html: katex.renderToString(tex, { displayMode: display, strict: "error" }) };
  } catch (error) {
    answer = { error: error.message };
  }
  process.stdout.write(`${JSON.stringify(answer)}\n`);
});
