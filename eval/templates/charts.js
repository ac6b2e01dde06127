"use strict";
// Puts interactive charts in the place of a figure's picture. Without plotly the picture stays.
(() => {
  const data = document.getElementById("chart-data");
  if (!data || typeof Plotly === "undefined") return;
  const charts = JSON.parse(data.textContent);
  const drawn = [];

  const element = (name, text, kind) => {
    const made = document.createElement(name);
    made.textContent = text;
    if (kind) made.className = kind;
    return made;
  };

  const inkOf = () => getComputedStyle(document.body).color;
  const DARK = "#222222";  // of the lines that matter most: the color of the text
  const lines = (figure) => figure.data.map((trace) => (trace.line.color === DARK
    ? { ...trace, line: { ...trace.line, color: inkOf() }, marker: { ...trace.marker, color: inkOf() } } : trace));

  const themed = (figure) => {
    const { layout } = figure;
    const ink = inkOf();
    const named = figure.data.filter((trace) => trace.showlegend).length;
    const more = innerWidth < 600 && named > 4 ? 13 * named : 0;  // a legend in one or two columns
    const line = getComputedStyle(document.querySelector(".chart")).borderTopColor;
    const axis = (given) => ({ ...given, color: ink, gridcolor: line, linecolor: line, zerolinecolor: line });
    const paper = getComputedStyle(document.body).backgroundColor;
    return {
      ...layout, height: layout.height + more, xaxis: axis(layout.xaxis), yaxis: axis(layout.yaxis),
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      font: { color: ink, size: 12, family: getComputedStyle(document.body).fontFamily },
      hoverlabel: { bgcolor: paper, bordercolor: line, font: { color: ink } },
      dragmode: matchMedia("(pointer: fine)").matches ? "zoom" : false,  // a finger scrolls the page
    };
  };

  for (const figure of document.querySelectorAll("figure[data-charts]")) {
    const place = figure.querySelector(".charts");
    for (const number of figure.dataset.charts.split(" ")) {
      const chart = charts[Number(number)];
      const box = element("div", "", "chart");
      const plot = element("div", "");
      plot.setAttribute("role", "img");
      plot.setAttribute("aria-label", chart.title);
      box.append(element("h4", chart.title), element("p", chart.caption, "quiet"), plot);
      place.append(box);
      drawn.push([plot, chart.figure]);
    }
    figure.classList.add("live");
  }
  for (const [plot, figure] of drawn)
    Plotly.newPlot(plot, lines(figure), themed(figure), { responsive: true, displayModeBar: false });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
    for (const [plot, figure] of drawn) Plotly.react(plot, lines(figure), themed(figure));
  });
})();
