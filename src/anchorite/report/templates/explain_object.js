// The panel of the shown box: the shape test in numbers, the neighbour rule in a drawing, and what would change it; or
// that of the selected region: which anchor cells it ignores, and why.

const objectPanel = document.getElementById("object");

function drawObject() {
  const shown = boxShown();
  if (shown === null && state.region !== null) {
    objectPanel.replaceChildren(...regionFacts(state.region));
    return;
  }
  if (shown === null) {
    objectPanel.replaceChildren(
      make("h2", {}, "No box selected"),
      make("p", { class: "note" }, "Tap or hover over a box in the picture, or pick one in a list, to see which anchors and " +
        "cells are assigned to it, and why."),
      ...unmatchedList());
    return;
  }
  const image = imageNow(), target = image.targets[shown], anchorCells = foundNow().ofBox[shown];
  const { w, h } = inPixels(target, image);
  const parts = [
    make("h2", {}, objectName(shown)),
    make("p", { class: "note" }, `${px(w)} x ${px(h)} px of the network input; label: ${target.origin}`),
    verdict(anchorCells, w, h),
    target.weight === 1 ? null : make("p", {}, "It counts ", make("strong", {}, short(target.weight)), ": box, class and objectness " +
      "loss of its anchor cells are multiplied by that."),
    shapeTable(w, h, anchorCells),
    ...neighbourDrawings(target, image, anchorCells),
  ];
  objectPanel.replaceChildren(...parts.filter((part) => part !== null));
}

// What a region ignores of each level, by the two rules.
function regionFacts(number) {
  const image = imageNow(), region = image.regions[number], { w, h } = inPixels(region, image);
  const rows = ignoredNow().map((cells, level) => {
    const own = cells.filter((one) => one.region === number), count = (test) => String(own.filter(test).length || "-");
    return make("tr", {}, make("td", {}, levelName(level)),
      make("td", { class: "number" }, count((one) => one.half)),
      make("td", { class: "number" }, count((one) => one.shape && !one.half)),
      make("td", { class: "number" }, count(() => true)));
  });
  return [
    make("h2", {}, regionName(number)),
    make("p", { class: "note" }, `${px(w)} x ${px(h)} px of the network input; label: ${region.origin}`),
    make("p", {}, "Why it is ignored: ", make("strong", {}, region.why), "."),
    make("p", { class: "note" }, "Neither object nor background: the objectness loss of these anchor cells counts nothing. Cells that " +
      "are assigned to a box are not among them."),
    table("Ignored anchor cells", ["Level", "Half of the anchor inside", "As if it were an object", "All"], rows, "wrap"),
  ];
}

// The boxes of the image that no anchor matches, each with the limit that it would need.
function unmatchedList() {
  const image = imageNow(), levels = levelsNow();
  const rows = foundNow().unmatched.map((number) => {
    const { w, h } = inPixels(image.targets[number], image), nearest = nearestAnchor(w, h, levels);
    return make("tr", {},
      make("td", {}, make("button", { type: "button", class: "link", click: () => change({ object: number }) }, objectName(number))),
      make("td", { class: "number" }, `${px(w)} x ${px(h)}`),
      make("td", {}, `${levelName(nearest.level)} ${nearest.anchor + 1}`),
      make("td", { class: "number" }, short(nearest.worst, 4)));
  });
  if (rows.length === 0) return [make("p", {}, image.targets.length ? "Every box of this image is matched." : "")];
  return [make("h3", {}, "Boxes that no anchor matches"),
    table("Boxes that no anchor matches", ["Box", "Size, px", "Nearest", "Limit above"], rows)];
}

const levelsNow = () => facts.levels.map((level, number) => ({ stride: level.stride, anchors: state.anchors[number] }));

function verdict(anchorCells, w, h) {
  if (anchorCells.length === 0) return unmatchedAdvice(w, h);
  const levels = facts.levels.flatMap((level, number) => {
    const count = anchorCells.filter((one) => one.level === number).length;
    return count ? [`${count} on ${level.name}`] : [];
  });
  return make("p", {}, `${counted(anchorCells.length, "anchor cell is", "anchor cells are")} assigned to it: ${levels.join(", ")}.`);
}

// What would make an unmatched box match: a higher limit, or other sides of the nearest anchor.
function unmatchedAdvice(w, h) {
  const nearest = nearestAnchor(w, h, levelsNow());
  const box = make("div", { class: "alert" }, make("p", {}, make("strong", {}, "No anchor matches this box: it is never learned.")));
  if (!Number.isFinite(nearest.worst)) {
    box.append(make("p", {}, "A side of it is 0; no limit and no anchor matches that."));
    return box;
  }
  const [anchorW, anchorH] = state.anchors[nearest.level][nearest.anchor];
  const where = `anchor ${nearest.anchor + 1} of ${levelName(nearest.level)} (${px(anchorW)} x ${px(anchorH)} px)`;
  const fault = Math.max(nearest.ratioW, 1 / nearest.ratioW) >= Math.max(nearest.ratioH, 1 / nearest.ratioH)
    ? `its width is ${times(nearest.ratioW)}` : `its height is ${times(nearest.ratioH)}`;
  box.append(make("p", {}, `Nearest is ${where}: ${fault} the anchor's. It would match with `,
    make("strong", {}, `a ratio limit above ${nearest.worst.toFixed(3)}`), ` (now ${short(state.limit)}), or with an anchor of `,
    make("strong", {}, `${px(w / state.limit)} to ${px(w * state.limit)} px by ${px(h / state.limit)} to ${px(h * state.limit)} px`), "."));
  const limit = Math.floor(nearest.worst * 100 + 1) / 100;
  const fitted = copyOf(state.anchors);
  const inside = (side, anchor) => Math.min(Math.max(anchor, side / state.limit * 1.02), side * state.limit / 1.02);
  fitted[nearest.level][nearest.anchor] = [inside(w, anchorW), inside(h, anchorH)].map((side) => Math.round(side * 10) / 10);
  const buttons = [make("button", { type: "button", click: () => change({ anchors: fitted }) },
    `Try anchor ${fitted[nearest.level][nearest.anchor].map(px).join(" x ")}`)];
  if (limit <= 8) buttons.unshift(make("button", { type: "button", click: () => change({ limit }) }, `Try limit ${limit}`));
  box.append(make("p", { class: "buttons" }, buttons));
  return box;
}

const times = (ratio) => (ratio >= 1 ? `${ratio.toFixed(2)} times` : `1/${(1 / ratio).toFixed(2)} of`);

function shapeTable(w, h, anchorCells) {
  const rows = [];
  facts.levels.forEach((level, number) => {
    if (state.level !== null && state.level !== number) return;
    const cells = anchorsInCells(state.anchors[number], level.stride);
    cells.forEach((anchor, index) => {
      const test = shapeTest(w / level.stride, h / level.stride, anchor), passes = test.worst < state.limit;
      const count = anchorCells.filter((one) => one.level === number && one.anchor === index).length;
      const [anchorW, anchorH] = state.anchors[number][index];
      const meter = makeSvg("svg", { class: "meter", viewBox: "0 0 60 10", "aria-hidden": "true" },
        makeSvg("rect", { class: "ground", width: 60, height: 10, rx: 3 }),
        makeSvg("rect", { class: passes ? "good" : "bad", width: meterWidth(test.worst), height: 10, rx: 3 }),
        makeSvg("path", { class: "limit", d: `M${meterWidth(state.limit)} 0V10` }));
      rows.push(make("tr", { class: passes ? "passes" : "fails" },
        make("td", {}, make("i", { class: state.level === null ? `swatch level-${number}` : `swatch anchor-${index % 6}` }), `${level.name} ${index + 1}`),
        make("td", { class: passes ? "good" : "bad" }, passes ? counted(count, "cell") : "no"),
        make("td", { class: "number" }, `${px(anchorW)} x ${px(anchorH)}`),
        make("td", { class: "number" }, test.ratioW.toFixed(2)),
        make("td", { class: "number" }, test.ratioH.toFixed(2)),
        make("td", { class: "number" }, make("span", { class: "worst" }, short(test.worst, 4)), meter)));
    });
  });
  return make("div", {},
    make("h3", {}, "Shape test"),
    make("p", { class: "note" }, "Box side / anchor side, for width and height. An anchor matches when the largest ratio, either way " +
      `round, stays under the limit of ${short(state.limit, 4)} (the mark in the bar).`),
    table("Shape test", ["Anchor", "Match", "Size, px", "w ratio", "h ratio", "Largest"], rows, "shapes"));
}

// On a scale of logarithms from 1 to 16.
const meterWidth = (ratio) => 60 * Math.min(Math.log(Math.max(ratio, 1)) / Math.log(16), 1);

function neighbourDrawings(target, image, anchorCells) {
  const matching = facts.levels.map((_, number) => number).filter((number) =>
    state.level === null ? anchorCells.some((one) => one.level === number) : state.level === number);
  if (matching.length === 0) return [];
  return [
    make("h3", {}, "Cells: its own, and the neighbours nearest to the centre"),
    make("p", { class: "note" }, "A neighbour is assigned too when the centre lies in the half of the cell next to it, unless the " +
      "grid ends there. Dot: the centre; dashed: the half-cell lines; filled: assigned cells."),
    make("div", { class: "neighbours" }, matching.map((number) => neighbourDrawing(number, target, image, anchorCells))),
  ];
}

function neighbourDrawing(number, target, image, anchorCells) {
  const { stride, name } = facts.levels[number];
  const rows = image.height / stride, columns = image.width / stride;
  const x = target.box[0] * columns, y = target.box[1] * rows;
  const assigned = cellsAssigned(x, y, rows, columns), cells = fiveCells(x, y, rows, columns), own = cells[0];
  const side = 40, matches = anchorCells.some((one) => one.level === number);
  const svg = makeSvg("svg", { viewBox: `-2 -2 ${3 * side + 4} ${3 * side + 4}`, role: "img", "aria-label": `Cells of ${name}` });
  for (let row = -1; row <= 1; row++) {
    for (let column = -1; column <= 1; column++) {
      const inside = own.column + column >= 0 && own.column + column < columns && own.row + row >= 0 && own.row + row < rows;
      const taken = cells.some((cell, shift) => assigned[shift] && cell.column === own.column + column && cell.row === own.row + row);
      const kind = !inside ? "outside" : !taken ? "free" : matches ? "taken" : "would";
      svg.append(makeSvg("rect", { class: kind, x: (column + 1) * side, y: (row + 1) * side, width: side, height: side }));
    }
  }
  const dot = { cx: side * (1 + x - own.column), cy: side * (1 + y - own.row) };
  svg.append(
    makeSvg("path", { class: "halves", d: `M${1.5 * side} ${side}V${2 * side}M${side} ${1.5 * side}H${2 * side}` }),
    makeSvg("circle", { ...dot, r: 4 }));
  return make("figure", {}, svg, make("figcaption", {},
    make("strong", {}, `${name}: cell (${own.column}, ${own.row})`),
    make("span", {}, axisWords("x", x, columns, assigned[1], assigned[3], ["left", "right"])),
    make("span", {}, axisWords("y", y, rows, assigned[2], assigned[4], ["up", "down"])),
    matches ? null : make("span", { class: "bad" }, "no anchor of this level matches, so none of these cells is assigned")));
}

function axisWords(axis, value, cells, low, high, [lowName, highName]) {
  const part = value - Math.floor(value), half = `${axis} = ${value.toFixed(2)}: ${part.toFixed(2)} `;
  if (part === 0 && (low || high)) {
    return `${axis} = ${value.toFixed(2)}: on a border, so the cell ${[low && lowName, high && highName].filter(Boolean).join(" and ")}`;
  }
  if (low) return `${half}< 0.5, so the cell ${lowName}`;
  if (high) return `${half}> 0.5, so the cell ${highName}`;
  if (value < 0 || value > cells) return `${half}lies outside the grid`;
  return part === 0.5 ? `${half}is the middle: no neighbour` : `${half}is nearest to the grid's edge: no neighbour`;
}
