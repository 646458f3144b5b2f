// What the chosen image costs under the weights: by box, by level, by place of the shown box, and in the background.
// All of it belongs to the original setting, whatever the sliders say.

const TERMS = ["box", "objectness", "classification"];
const PLACE = { level: 0, anchor: 1, row: 2, column: 3, target: 4, iou: 5, goal: 6, says: 7, classSays: 8, box: 9,
  objectness: 10, classification: 11, wins: 12, predicted: 13 };
const iouName = facts.loss ? facts.loss.iou.toUpperCase().replace("IOU", "IoU") : "";
const levelCosts = document.getElementById("level-costs");
const backgroundCosts = document.getElementById("background-costs");
const placeCosts = document.getElementById("place-costs");

// Costs of each box of an image: sums over its places, and the mean IoU there.
function costsOfBoxes(image) {
  const sums = image.targets.map(() => ({ box: 0, objectness: 0, classification: 0, total: 0, iou: 0, places: 0 }));
  for (const place of image.costs.places) {
    const sum = sums[place[PLACE.target]];
    for (const term of TERMS) {
      sum[term] += place[PLACE[term]];
      sum.total += place[PLACE[term]];
    }
    sum.iou += place[PLACE.iou];
    sum.places += 1;
  }
  for (const sum of sums) sum.iou = sum.places ? sum.iou / sum.places : NaN;
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
  drawPlaceCosts(costs);
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

function placeEvents(place) {
  return {
    pointerenter: (event) => { if (event.pointerType === "mouse") change({ place }); },
    pointerleave: (event) => { if (event.pointerType === "mouse") change({ place: null }); },
  };
}

// A button that shows a predicted box in the picture, for keyboard and touch.
function placeButton(place, text) {
  return make("button", { type: "button", class: "link", "aria-label": `Show the predicted box of ${text}`,
    click: (event) => {  // under a mouse it is shown already, and should stay
      change({ place: event.pointerType !== "mouse" && samePlace(state.place, place) ? null : place });
    } }, text);
}

const samePlace = (one, other) => one !== null && JSON.stringify(one) === JSON.stringify(other);
const placeName = (place) => `${levelName(place.level)}, anchor ${place.anchor + 1}, cell (${place.column}, ${place.row})`;

function drawBackground({ background, terms, levels }) {
  const all = levels.reduce((sum, level) => sum + level.background, 0), { targets } = imageNow();
  const rows = background.map((cell) => {
    const place = { level: cell.level, anchor: cell.anchor, row: cell.row, column: cell.column, box: cell.box };
    const near = cell.near === null || cell.near_iou < 0.1 ? "no box there: missing label?"
      : `${cell.near_iou >= 0.5 ? "over" : "beside"} ${objectName(cell.near)}, IoU ${cell.near_iou.toFixed(2)}`;
    return make("tr", placeEvents(place),
      make("td", {}, placeButton(place, placeName(place))),
      make("td", { class: "number" }, short(cell.cost)), make("td", { class: "number" }, percent(cell.cost / terms.total)),
      make("td", { class: "number" }, cell.says.toFixed(2)),
      make("td", {}, facts.classes.length > 1 ? `${facts.classes[cell.class]} (${cell.class_says.toFixed(2)})` : facts.classes[0]),
      make("td", {}, targets.length ? near : "no box in this image"));
  });
  backgroundCosts.replaceChildren(
    make("p", { class: "note" }, `Places that answer for no box cost ${percent(all / terms.total)} of this image's loss together. ` +
      "The dearest are those where the network is surest of an object: a second claim on a box, or a label that is missing."),
    table("Most expensive background cells", ["Place", "Cost", "Share", "Objectness", "Class", "What is there"], rows));
}

// The places of the shown box as they were trained: what was predicted, and what each costs.
function drawPlaceCosts({ places, terms }) {
  const shown = boxShown();
  if (shown === null) {
    placeCosts.replaceChildren();
    return;
  }
  const own = places.filter((row) => row[PLACE.target] === shown);
  const sumOf = (row) => TERMS.reduce((sum, term) => sum + row[PLACE[term]], 0), most = Math.max(...own.map(sumOf), 0);
  const rows = own.map((row) => {
    const place = { level: row[PLACE.level], anchor: row[PLACE.anchor], row: row[PLACE.row], column: row[PLACE.column],
      box: row.slice(PLACE.predicted, PLACE.predicted + 4) };
    const parts = Object.fromEntries(TERMS.map((term) => [term, row[PLACE[term]]]));
    return make("tr", placeEvents(place),
      make("td", {}, placeButton(place, `${levelName(place.level)} ${place.anchor + 1} (${place.column}, ${place.row})`)),
      make("td", { class: "number" }, row[PLACE.iou].toFixed(3)),
      make("td", { class: "number" }, row[PLACE.wins] ? `${row[PLACE.says].toFixed(2)} / ${row[PLACE.goal].toFixed(2)}` : "other box"),
      make("td", { class: "number" }, facts.classes.length > 1 ? row[PLACE.classSays].toFixed(2) : "-"),
      make("td", { class: "number", title: TERMS.map((term) => `${term} ${short(parts[term])}`).join(", ") },
        percent(sumOf(row) / terms.total), costBar(parts, most)));
  });
  placeCosts.replaceChildren(
    make("h3", {}, "Predicted boxes and what they cost"),
    rows.length === 0 ? make("p", { class: "note" }, "In the setting of the weights no place answered for this box.")
      : table("Predicted boxes and costs",
        ["Place", iouName, "Objectness", "Class", "Share of loss"], rows),
    make("p", { class: "note" }, "Objectness: said / wanted, or \"other box\" where another box sets it; class: said for the true one."),
    staleNote());
}

// Said beside figures of the loss while the sliders are elsewhere.
function staleNote() {
  return make("p", { class: "stale", hidden: isOriginal() }, "These figures belong to the original setting, not to the sliders'.");
}
