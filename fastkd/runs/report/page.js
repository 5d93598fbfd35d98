"use strict";
for (const button of document.querySelectorAll("button.copy")) {
  const text = button.closest(".block").querySelector("pre");
  button.hidden = false;
  button.addEventListener("click", async () => {
    getSelection().selectAllChildren(text);
    try {
      await navigator.clipboard.writeText(text.textContent);
      button.textContent = "Copied";
    } catch {
      button.textContent = "Selected";
    }
    setTimeout(() => (button.textContent = "Copy"), 1500);
  });
}
// Shows the values at the pointer in the legend.
for (const figure of document.querySelectorAll("figure:not(.dots)")) {
  const svg = figure.querySelector("svg");
  const percent = figure.dataset.percent === "1";
  const lines = [...svg.querySelectorAll("polyline")].map((line) => {
    const places = line.getAttribute("points").split(" ").map((p) => p.split(",").map(Number));
    return line.dataset.points.split(" ").map((p, i) => [places[i][0], ...p.split(",").map(Number)]);
  });
  const values = [...figure.querySelectorAll(".legend .value")];
  const step = figure.querySelector(".at b");
  const cursor = document.createElementNS("http://www.w3.org/2000/svg", "path");
  cursor.setAttribute("class", "cursor");
  const nearest = (line, x) => line.reduce((a, b) => (Math.abs(b[0] - x) < Math.abs(a[0] - x) ? b : a));
  const format = (v) => (percent ? (100 * v).toFixed(1) + "%" : String(Number(v.toPrecision(4))));
  svg.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect();
    const x = ((event.clientX - box.left) / box.width) * svg.viewBox.baseVal.width;
    const found = lines.map((line) => nearest(line, x));
    const best = nearest(found, x);
    found.forEach((point, i) => (values[i].textContent = format(point[2])));
    step.textContent = best[1].toLocaleString("en-GB");
    cursor.setAttribute("d", `M${best[0]} 24V176`);
    svg.append(cursor);
  });
  svg.addEventListener("pointerleave", () => {
    cursor.remove();
    values.forEach((value) => (value.textContent = value.dataset.last));
    step.textContent = Number(step.dataset.last).toLocaleString("en-GB");
  });
}
