// Renders the mathematics that pymdownx.arithmatex marked. KaTeX is in assets/katex.
const renderMathematics = () => {
  for (const element of document.querySelectorAll(".arithmatex")) {
    if (element.dataset.rendered) continue;
    const source = element.textContent.trim();
    element.dataset.rendered = "yes";
    katex.render(source.slice(2, -2), element, {
      displayMode: source.startsWith("\\["),
      throwOnError: false,
      macros: {
        "\\R": "\\mathbb{R}",
        "\\argmin": "\\operatorname*{arg\\,min}",
        "\\retract": "\\operatorname{retract}",
      },
    });
  }
};
if (window.document$) window.document$.subscribe(renderMathematics);
else document.addEventListener("DOMContentLoaded", renderMathematics);
