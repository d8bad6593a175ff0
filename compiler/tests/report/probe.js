// Runs after the page's script: uses the page as a person would, and leaves what it saw in #probe.
window.addEventListener("load", () => {
  const all = (selector) => [...document.querySelectorAll(selector)];
  const number = (text) => Number(text.replace(/[,\s]/g, ""));
  const pbs = (selector) => all(selector).reduce((total, row) => total + number(row.querySelector(".bar b")?.textContent || "0"), 0);
  const seen = { problems: window.problems, charts: {}, fields: {}, layers: [] };
  for (const field of all("[data-field]")) seen.fields[field.dataset.field] = field.dataset.value || field.textContent;
  for (const chart of all(".chart")) seen.charts[chart.id] = chart.querySelectorAll("svg rect, svg circle").length;

  document.getElementById("fold").click();
  seen.folded = all(".row.node").length;
  seen.layerPbs = pbs(".row.layer");
  for (const name of all(".row.layer").map((row) => row.dataset.layer)) {
    const row = () => document.querySelector(`.row.layer[data-layer="${name}"]`);
    row().click();
    seen.layers.push({ name, unfolded: all(".row.node").length, expanded: row().getAttribute("aria-expanded") });
    row().click();
    if (all(".row.node").length) seen.problems.push(`${name} does not fold`);
  }
  document.getElementById("unfold").click();
  seen.unfolded = all(".row.node").length;
  seen.nodePbs = pbs(".row.node");
  seen.edges = all("#rows path").length;

  all(".row.node").forEach((_, i) => all(".row.node")[i].click());
  seen.details = all(".detail").length;
  all(".row.node").forEach((_, i) => all(".row.node")[i].click());
  seen.detailsClosed = all(".detail").length;
  seen.wide = document.documentElement.scrollWidth > document.documentElement.clientWidth;
  const out = document.createElement("pre");
  out.id = "probe";
  out.textContent = JSON.stringify(seen);
  document.body.append(out);
});
