"use strict";
// Values under the pointer, lines that a legend hides, boxes that a switch hides. Everything is delegated, so that parts
// of the page may be replaced.
(() => {
  const NS = "http://www.w3.org/2000/svg";
  const tip = document.getElementById("tip");
  const parsed = new WeakMap();
  let chart = null;

  const dataOf = (svg) => {
    if (!parsed.has(svg)) parsed.set(svg, JSON.parse(svg.dataset.chart));
    return parsed.get(svg);
  };

  const place = (x, y) => {
    tip.hidden = false;
    const box = tip.getBoundingClientRect();
    const left = x + 16 + box.width > document.documentElement.clientWidth ? x - 16 - box.width : x + 16;
    const top = y + 16 + box.height > innerHeight ? y - 16 - box.height : y + 16;
    tip.style.left = `${Math.max(4, left)}px`;
    tip.style.top = `${Math.max(4, top)}px`;
  };

  const say = (words, x, y) => {
    tip.replaceChildren(document.createTextNode(words));
    place(x, y);
  };

  const hide = () => {
    tip.hidden = true;
    if (chart) chart.querySelector(".cursor")?.remove();
    chart = null;
  };

  const nearest = (at, x) => {
    let low = 0;
    let high = at.length - 1;
    while (high - low > 1) {
      const middle = (low + high) >> 1;
      if (at[middle][0] < x) low = middle;
      else high = middle;
    }
    return x - at[low][0] <= at[high][0] - x ? low : high;
  };

  const hidden = (svg, line) => svg.querySelector(`path.line[data-line="${line}"]`)?.classList.contains("off") ?? false;

  const show = (svg, index, pageX, pageY) => {
    const data = dataOf(svg);
    if (chart !== svg) hide();
    chart = svg;
    svg.dataset.index = index;
    svg.querySelector(".cursor")?.remove();
    const group = document.createElementNS(NS, "g");
    group.setAttribute("class", "cursor");
    const rule = document.createElementNS(NS, "path");
    rule.setAttribute("d", `M${data.at[index][0]},10 V148`);
    group.append(rule);
    const words = document.createElement("b");
    words.textContent = `${data.x} ${data.at[index][1]}`;
    const rows = data.lines
      .map(([name, values], line) => ({ name, line, value: values[index] }))
      .filter(({ line, value }) => value && !hidden(svg, line))
      .sort((a, b) => a.value[0] - b.value[0]);
    const list = document.createElement("table");
    for (const { name, line, value } of rows) {
      const dot = document.createElementNS(NS, "circle");
      const style = svg.querySelector(`path.line[data-line="${line}"]`)?.getAttribute("class") ?? "line";
      dot.setAttribute("class", style.replace("line", "dot"));
      dot.setAttribute("cx", data.at[index][0]);
      dot.setAttribute("cy", value[0]);
      dot.setAttribute("r", 3.5);
      group.append(dot);
      const row = list.insertRow();
      row.insertCell().textContent = name;
      row.insertCell().textContent = value[1];
    }
    svg.append(group);
    tip.replaceChildren(words, list);
    place(pageX, pageY);
  };

  const follow = (event) => {
    const svg = event.target.closest?.("svg.chart");
    if (svg) {
      const box = svg.getBoundingClientRect();
      const x = ((event.clientX - box.left) * svg.viewBox.baseVal.width) / box.width;
      show(svg, nearest(dataOf(svg).at, x), event.clientX, event.clientY);
      return;
    }
    const told = event.target.closest?.("[data-tip]");
    if (chart) hide();
    if (told && told.dataset.tip) say(told.dataset.tip, event.clientX, event.clientY);
    else tip.hidden = true;
  };

  addEventListener("pointermove", follow);
  addEventListener("pointerdown", follow);
  addEventListener("scroll", hide, { passive: true });
  document.addEventListener("pointerleave", hide);

  addEventListener("keydown", (event) => {
    if (event.key === "Escape") hide();
    const svg = document.activeElement?.closest?.("svg.chart");
    const steps = { ArrowLeft: -1, ArrowRight: 1, Home: -Infinity, End: Infinity };
    if (!svg || !(event.key in steps)) return;
    event.preventDefault();
    const last = dataOf(svg).at.length - 1;
    const from = svg.dataset.index === undefined ? (steps[event.key] > 0 ? -1 : last + 1) : Number(svg.dataset.index);
    const index = Math.min(last, Math.max(0, from + steps[event.key]));
    const box = svg.getBoundingClientRect();
    show(svg, index, box.left + (dataOf(svg).at[index][0] * box.width) / svg.viewBox.baseVal.width, box.top + 20);
  });
  addEventListener("focusout", hide);

  addEventListener("click", (event) => {
    const button = event.target.closest?.(".legend button[data-line]");
    if (!button) return;
    const on = button.getAttribute("aria-pressed") !== "true";
    button.setAttribute("aria-pressed", on);
    const path = button.closest("figure").querySelector(`svg.chart path.line[data-line="${button.dataset.line}"]`);
    path.classList.toggle("off", !on);
  });
  addEventListener("change", (event) => {
    const kind = event.target.dataset?.hides;
    if (kind) event.target.closest("section").classList.toggle(`no-${kind}`, !event.target.checked);
  });
})();
