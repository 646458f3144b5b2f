// What the chosen image costs under the weights: by box, by level, by anchor cell of the shown box, and in the background.
// All of it belongs to the original setting, whatever the sliders say.

const TERMS = ["box", "objectness", "classification"];
const COLUMN = { level: 0, anchor: 1, row: 2, column: 3, target: 4, iou: 5, objectnessTarget: 6, objectnessSeen: 7, classSeen: 8, box: 9,
  objectness: 10, classification: 11, wins: 12, predicted: 13 };
const iouName = facts.loss ? facts.loss.iou.toUpperCase().replace("IOU", "IoU") : "";
const levelCosts = document.getElementById("level-costs");
const backgroundCosts = document.getElementById("background-costs");
const cellCosts = document.getElementById("cell-costs");

// Costs of each box of an image: sums over its anchor cells, and the mean IoU there.
function costsOfBoxes(image) {
  const sums = image.targets.map(() => ({ box: 0, objectness: 0, classification: 0, total: 0, iou: 0, anchorCells: 0 }));
  for (const predicted of image.costs.anchor_cells) {
    const sum = sums[predicted[COLUMN.target]];
    for (const term of TERMS) {
      sum[term] += predicted[COLUMN[term]];
      sum.total += predicted[COLUMN[term]];
    }
    sum.iou += predicted[COLUMN.iou];
    sum.anchorCells += 1;
  }
  for (const sum of sums) sum.iou = sum.anchorCells ? sum.iou / sum.anchorCells : NaN;
  return sums;
}

// A bar of three parts, each a share of `whole`.
function costBar(parts, whole) {
  const bar = makeSvg("svg", { class: "bar", viewBox: "0 0 100 10", preserveAspectRatio: "none", "aria-hidden": "true" },
    makeSvg("rect", { class: "ground", width: 100, height: 10 }));
  let left = 0;
  for (const term of TERMS) {
    const width = whole > 0 ? 100 * Math.max(parts[term] ?? 0, 0) / whole : 0;
    bar.append(makeSvg("rect", { class: `term-${term}`, x: left, width, height: 10 }));
    left += width;
  }
  return bar;
}

function drawCosts() {
  const { costs } = imageNow();
  if (!costs) return;
  drawLevelCosts(costs);
  drawBackground(costs);
  drawCellCosts(costs);
}

function drawLevelCosts({ terms, levels }) {
  const squares = levels.reduce((sum, level) => sum + level.gradient ** 2, 0);
  const share = (value) => percent(value / terms.total);
  const rows = levels.map((level, number) => {
    const gradient = level.gradient ** 2 / squares;
    const parts = TERMS.map((term) => ({ term, part: level[`gradient_${term}`] ** 2 / squares }));
    return make("tr", {},
      make("td", {}, make("i", { class: `swatch level-${number}` }), levelName(number)),
      make("td", { class: "number" }, share(level.box)),
      make("td", { class: "number" }, share(level.objectness - level.background)),
      make("td", { class: "number" }, share(level.background)),
      make("td", { class: "number" }, share(level.classification)),
      make("td", { class: "number" }, share(level.box + level.objectness + level.classification)),
      make("td", { class: "number" }, percent(gradient),
        costBar(Object.fromEntries(parts.map(({ term, part }) => [term, part])), 1)));
  });
  levelCosts.replaceChildren(
    make("p", {}, "Loss of this image alone: ", make("strong", {}, short(terms.total, 4)), " = ",
      ...TERMS.flatMap((term, number) => [number ? " + " : "", make("i", { class: `swatch term-${term}` }),
        `${term} ${short(terms[term], 4)} (${percent(terms[term] / terms.total)})`])),
    costBar(terms, terms.total),
    table("Shares of the loss by level", ["Level", "box", "objectness at boxes", "background", "class", "all", "gradient"], rows, "levels"),
    make("p", { class: "note" }, "Gradient: the squared L2 norm of the gradient of this image's loss with respect to all logits " +
      "of the level, as a share of the sum over levels; coloured by the logits it falls on. It says where the loss pulls at " +
      "the network's output, not how far the weights move."));
}

function predictedEvents(predicted) {
  return {
    pointerenter: (event) => { if (event.pointerType === "mouse") change({ predicted }); },
    pointerleave: (event) => { if (event.pointerType === "mouse") change({ predicted: null }); },
  };
}

// A button that shows a predicted box in the picture, for keyboard and touch.
function predictedButton(predicted, text) {
  return make("button", { type: "button", class: "link", "aria-label": `Show the predicted box of ${text}`,
    click: (event) => {  // under a mouse it is shown already, and should stay
      change({ predicted: event.pointerType !== "mouse" && samePredicted(state.predicted, predicted) ? null : predicted });
    } }, text);
}

const samePredicted = (one, other) => one !== null && JSON.stringify(one) === JSON.stringify(other);
const anchorCellName = (predicted) => `${levelName(predicted.level)}, anchor ${predicted.anchor + 1}, cell (${predicted.column}, ${predicted.row})`;

function drawBackground({ background, terms, levels }) {
  const all = levels.reduce((sum, level) => sum + level.background, 0), { targets, labels } = imageNow();
  const unlabelled = (cell) => (labels.uncovered.includes(cell.class) ? "no box there: its class is not covered here"
    : labels.background < 1 ? "no box there: labels may be missing here" : "no box there: missing label?");
  const rows = background.map((cell) => {
    const predicted = { level: cell.level, anchor: cell.anchor, row: cell.row, column: cell.column, box: cell.box };
    const near = cell.near === null || cell.near_iou < 0.1 ? unlabelled(cell)
      : `${cell.near_iou >= 0.5 ? "over" : "beside"} ${objectName(cell.near)}, IoU ${cell.near_iou.toFixed(2)}`;
    return make("tr", predictedEvents(predicted),
      make("td", {}, predictedButton(predicted, anchorCellName(predicted))),
      make("td", { class: "number" }, short(cell.cost)), make("td", { class: "number" }, percent(cell.cost / terms.total)),
      make("td", { class: "number" }, cell.predicted.toFixed(2)),
      make("td", {}, facts.classes.length > 1 ? `${facts.classes[cell.class]} (${cell.class_predicted.toFixed(2)})` : facts.classes[0]),
      make("td", {}, targets.length || labels.background < 1 ? near : "no box in this image"));
  });
  backgroundCosts.replaceChildren(
    make("p", { class: "note" }, sparedWords(levels, terms) + `Anchor cells that are assigned to no box cost ${percent(all / terms.total)} of this image's loss together. ` +
      "The most expensive are those where the network is most certain of an object: a second detection of a box, or a missing label."),
    table("Most expensive background cells", ["Anchor cell", "Cost", "Share", "Objectness", "Class", "What is there"], rows));
}

// What is not counted because the labels do not know it.
function sparedWords(levels, terms) {
  const spared = levels.reduce((sum, level) => sum + level.spared, 0), cells = levels.reduce((sum, level) => sum + level.not_counted, 0);
  if (spared === 0) return "";
  return `If the labels knew everything, the background would add ${short(spared, 4)} to the objectness of ${short(terms.objectness, 4)}; ` +
    `${counted(cells, "anchor cell counts", "anchor cells count")} nothing. `;
}

// The anchor cells of the shown box as they were trained: what was predicted, and what each costs.
function drawCellCosts({ anchor_cells: anchorCells, terms }) {
  const shown = boxShown();
  if (shown === null) {
    cellCosts.replaceChildren();
    return;
  }
  const own = anchorCells.filter((row) => row[COLUMN.target] === shown);
  const sumOf = (row) => TERMS.reduce((sum, term) => sum + row[COLUMN[term]], 0), most = Math.max(...own.map(sumOf), 0);
  const rows = own.map((row) => {
    const predicted = { level: row[COLUMN.level], anchor: row[COLUMN.anchor], row: row[COLUMN.row], column: row[COLUMN.column],
      box: row.slice(COLUMN.predicted, COLUMN.predicted + 4) };
    const parts = Object.fromEntries(TERMS.map((term) => [term, row[COLUMN[term]]]));
    return make("tr", predictedEvents(predicted),
      make("td", {}, predictedButton(predicted, `${levelName(predicted.level)} ${predicted.anchor + 1} (${predicted.column}, ${predicted.row})`)),
      make("td", { class: "number" }, row[COLUMN.iou].toFixed(3)),
      make("td", { class: "number" }, row[COLUMN.wins] ? `${row[COLUMN.objectnessSeen].toFixed(2)} / ${row[COLUMN.objectnessTarget].toFixed(2)}` : "other box"),
      make("td", { class: "number" }, facts.classes.length > 1 ? row[COLUMN.classSeen].toFixed(2) : "-"),
      make("td", { class: "number", title: TERMS.map((term) => `${term} ${short(parts[term])}`).join(", ") },
        percent(sumOf(row) / terms.total), costBar(parts, most)));
  });
  cellCosts.replaceChildren(
    make("h3", {}, "Predicted boxes and what they cost"),
    rows.length === 0 ? make("p", { class: "note" }, "With the settings of the weights no anchor matched this box.")
      : table("Predicted boxes and costs",
        ["Anchor cell", iouName, "Objectness", "Class", "Share of loss"], rows),
    make("p", { class: "note" }, "Objectness: predicted / target, or \"other box\" where another box sets the target; class: probability predicted for the true one."),
    staleNote());
}

// Shown beside figures of the loss while the sliders are elsewhere.
function staleNote() {
  return make("p", { class: "stale", hidden: isOriginal() }, "These figures belong to the original setting, not to the sliders'.");
}
