// The picture of the chosen image: boxes, the grid of a level, the assigned and the ignored cells, and where the centre
// falls.

const stage = document.getElementById("stage");
const legend = document.getElementById("legend");
let layers = {};

function drawPicture() {
  const image = imageNow();
  layers = {};
  for (const name of ["grid", "ignored", "cells", "regions", "centre", "predicted", "boxes"]) layers[name] = makeSvg("g", { class: name });
  const photo = makeSvg("image", { href: image.uri, width: image.width, height: image.height, preserveAspectRatio: "none" });
  stage.setAttribute("viewBox", `0 0 ${image.width} ${image.height}`);
  stage.setAttribute("aria-label", `${image.name}, ${counted(image.targets.length, "box", "boxes")}. ` +
    "Arrow up and down select a box, left and right an image, Escape selects nothing.");
  stage.replaceChildren(hatches(image), photo, ...Object.values(layers));
  // Large boxes first, so that a small one inside a large one can be reached.
  const order = image.targets.map((target, number) => ({ number, ...inPixels(target, image) }))
    .sort((a, b) => b.w * b.h - a.w * a.h);
  image.regions.forEach((region, number) => {
    const { cx, cy, w, h } = inPixels(region, image);
    const select = (event) => {
      event.stopPropagation();
      change({ region: state.region === number ? null : number });
    };
    layers.regions.append(makeSvg("g", { class: "region", "data-number": number, click: select },
      makeSvg("title", {}, `${regionName(number)}: ${region.why}`),
      makeSvg("rect", { x: cx - w / 2, y: cy - h / 2, width: w, height: h })));
  });
  for (const { number, cx, cy, w, h } of order) {
    const corners = { x: cx - w / 2, y: cy - h / 2, width: w, height: h };
    const enter = (event) => { if (event.pointerType === "mouse") change({ hovered: number }); };
    const leave = (event) => { if (event.pointerType === "mouse") change({ hovered: null }); };
    const select = (event) => {
      event.stopPropagation();
      change({ object: state.object === number ? null : number, hovered: null, predicted: null });
    };
    layers.boxes.append(makeSvg("g", { class: "box", "data-number": number, pointerenter: enter, pointerleave: leave, click: select },
      makeSvg("rect", { class: "halo", ...corners }), makeSvg("rect", { class: "edge", ...corners })));
  }
  drawOverlays();
}

function drawOverlays() {
  const shown = boxShown(), now = foundNow();
  for (const group of layers.boxes.querySelectorAll(".box")) {
    const number = Number(group.dataset.number);
    group.classList.toggle("unmatched", now.ofBox[number].length === 0);
    group.classList.toggle("shown", number === shown);
    group.classList.toggle("faded", shown !== null && number !== shown);
  }
  for (const region of layers.regions.children) {
    region.classList.toggle("shown", Number(region.dataset.number) === state.region);
    region.classList.toggle("whole", state.level === null);
  }
  drawGrid();
  drawIgnored();
  drawCells(shown);
  drawCentre(shown);
  drawPredicted();
  drawLegend();
}

function drawGrid() {
  layers.grid.replaceChildren();
  if (state.level === null) return;
  const { width, height } = imageNow(), { stride } = facts.levels[state.level];
  let path = "";
  for (let x = stride; x < width; x += stride) path += `M${x} 0V${height}`;
  for (let y = stride; y < height; y += stride) path += `M0 ${y}H${width}`;
  layers.grid.append(makeSvg("path", { d: path }));
}

// Two ways of hatching, a thin dark line beside each light one, so that they are seen on any picture.
function hatches(image) {
  const side = Math.max(image.width, image.height) / 70;
  return makeSvg("defs", {}, [["half", 45], ["shape", -45]].map(([rule, angle]) => makeSvg("pattern",
    { id: `hatch-${rule}`, patternUnits: "userSpaceOnUse", width: side, height: side, patternTransform: `rotate(${angle})` },
    makeSvg("path", { class: "dark", d: `M${side / 2} 0V${side}`, "stroke-width": side / 3 }),
    makeSvg("path", { class: "light", d: `M${side / 2} 0V${side}`, "stroke-width": side / 6 }))));
}

// On a chosen level the ignored anchor cells, of all regions or of the selected one: a stripe an anchor in each cell.
function drawIgnored() {
  layers.ignored.replaceChildren();
  if (state.level === null || imageNow().regions.length === 0) return;
  const { stride, anchors } = facts.levels[state.level], width = stride / anchors.length;
  const shown = ignoredNow()[state.level].filter((one) => state.region === null || one.region === state.region);
  const stripe = ({ anchor, row, column }) => `M${column * stride + anchor * width} ${row * stride}h${width}v${stride}h${-width}z`;
  const halves = new Map(shown.filter((one) => one.half).map((one) => [cellKey(one), one]));
  const others = new Map(shown.map((one) => [cellKey(one), one]).filter(([key]) => !halves.has(key)));
  for (const [rule, cells] of [["half", halves], ["shape", others]]) {
    layers.ignored.append(makeSvg("path", { class: rule, d: [...cells.values()].map(stripe).join("") }));
  }
}

// Of all boxes, or of the shown one: on one level a stripe an anchor in each cell, on all levels whole cells.
function drawCells(shown) {
  const now = foundNow(), drawn = [];
  const candidates = (shown === null ? now.levels.flat() : now.ofBox[shown])
    .filter((one) => state.level === null || one.level === state.level);
  const seen = new Set();
  const order = state.level === null ? [...candidates].sort((a, b) => b.level - a.level) : candidates;
  for (const one of order) {
    const { stride, anchors } = facts.levels[one.level];
    const stripe = state.level === null ? 0 : one.anchor;
    const key = `${one.level},${one.row},${one.column},${stripe}`;
    if (seen.has(key)) continue;
    seen.add(key);
    const width = state.level === null ? stride : stride / anchors.length;
    drawn.push(makeSvg("rect", {
      class: state.level === null ? `cell level-${one.level}` : `cell anchor-${one.anchor % 6}`,
      x: one.column * stride + stripe * width, y: one.row * stride, width, height: stride,
    }));
  }
  layers.cells.classList.toggle("overview", shown === null);
  layers.cells.replaceChildren(...drawn);
}

// The centre of the shown box and, on a chosen level, the half-cell lines that decide for neighbours.
function drawCentre(shown) {
  layers.centre.replaceChildren();
  if (shown === null) return;
  const image = imageNow(), { cx, cy } = inPixels(image.targets[shown], image);
  if (state.level !== null) {
    const { stride } = facts.levels[state.level];
    const held = (value, end) => Math.min(Math.max(Math.trunc(value / stride), 0), end / stride - 1) * stride;
    const x = held(cx, image.width), y = held(cy, image.height);
    layers.centre.append(
      makeSvg("rect", { class: "own", x, y, width: stride, height: stride }),
      makeSvg("path", { class: "halves", d: `M${x + stride / 2} ${y}V${y + stride}M${x} ${y + stride / 2}H${x + stride}` }));
  }
  const radius = Math.max(image.width, image.height) / 160;
  layers.centre.append(makeSvg("circle", { cx, cy, r: radius }));
}

// A predicted box under the pointer, with its cell.
function drawPredicted() {
  layers.predicted.replaceChildren();
  if (state.predicted === null) return;
  const { box: [cx, cy, w, h], level, row, column } = state.predicted, { stride } = facts.levels[level];
  layers.predicted.append(
    makeSvg("rect", { class: "source", x: column * stride, y: row * stride, width: stride, height: stride }),
    makeSvg("rect", { class: "halo", x: cx - w / 2, y: cy - h / 2, width: w, height: h }),
    makeSvg("rect", { class: "edge", x: cx - w / 2, y: cy - h / 2, width: w, height: h }));
}

// Whatever is under the pointer: a legend that grew then would move the lists below it away from there.
function drawLegend() {
  const key = (kind, text) => make("span", { class: "key" }, make("i", { class: `swatch ${kind}` }), text);
  const parts = [];
  if (state.level === null) {
    facts.levels.forEach((level, number) => parts.push(key(`level-${number}`, `cell of ${level.name} (${level.stride} px)`)));
  } else {
    state.anchors[state.level].forEach(([w, h], number) =>
      parts.push(key(`anchor-${number % 6}`, `anchor ${number + 1} (${px(w)} x ${px(h)} px)`)));
  }
  if (state.level !== null && imageNow().targets.length) parts.push(key("halves", "half-cell lines of the cell with the centre"));
  if (foundNow().unmatched.length) parts.push(key("unmatched", "box that no anchor matches"));
  if (imageNow().regions.length) {
    parts.push(key("region", "ignored region"));
    if (state.level !== null) {
      parts.push(key("half", "ignored: half of the anchor is inside"), key("shape", "ignored: as if it were an object"));
    }
  }
  if (imageNow().costs) parts.push(key("predicted", "predicted box and its cell"));
  legend.replaceChildren(...parts);
}
