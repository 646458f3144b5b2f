// Lists, controls and keys: everything that changes the state, and what is drawn anew then.

const byId = (id) => document.getElementById(id);

// Images -----------------------------------------------------------------------------------------------------------

function makeImageList() {
  byId("images").replaceChildren(...facts.images.map((image, number) =>
    make("li", {}, make("button", { type: "button", click: () => change({ image: number }) },
      make("img", { src: image.uri, alt: "", loading: "lazy" }),
      make("span", { class: "name" }, image.name),
      make("span", { class: "badges" })))));
}

function drawImageList() {
  [...byId("images").children].forEach((item, number) => {
    const button = item.firstChild, { unmatched, collisions } = found[number], image = facts.images[number];
    button.setAttribute("aria-current", String(number === state.image));
    const badges = [make("span", {}, counted(image.targets.length, "box", "boxes"))];
    if (unmatched.length) badges.push(make("span", { class: "bad" }, `${unmatched.length} unmatched`));
    if (collisions.length) badges.push(make("span", {}, counted(collisions.length, "collision")));
    if (image.regions.length) badges.push(make("span", {}, `${image.regions.length} ignored`));
    if (image.costs) badges.push(make("span", {}, `loss ${short(image.costs.terms.total)}`));
    button.lastChild.replaceChildren(...badges);
  });
}

function drawHeading() {
  const image = imageNow(), [width, height] = image.source;
  byId("image-name").textContent = image.name;
  byId("image-note").textContent = `Image ${state.image + 1} of ${facts.images.length}, chosen for: ${image.reason}. ${width} x ${height} px, ` +
    `letterboxed to ${image.width} x ${image.height}.${labelWords(image.labels)}`;
}

// What the labels of an image do not know besides its regions.
function labelWords({ source, uncovered, background }) {
  const words = [];
  if (uncovered.length) {
    const names = uncovered.slice(0, 5).map((id) => facts.classes[id]), more = uncovered.length - names.length;
    words.push(`do not cover ${names.join(", ")}${more ? ` and ${more} more` : ""}: no class loss for ${uncovered.length === 1 ? "it" : "them"} here`);
  }
  if (background !== 1) words.push(`may lack objects: what is no box counts ${short(background)}`);
  return words.length ? ` Its labels${source ? ` (${source})` : ""} ${words.join(", and ")}.` : "";
}

// Summary of all images ---------------------------------------------------------------------------------------------

function drawSummary() {
  const boxes = facts.images.reduce((sum, image) => sum + image.targets.length, 0);
  const sum = (count) => found.reduce((total, one) => total + count(one), 0);
  const unmatched = sum((one) => one.unmatched.length);
  const regions = facts.images.reduce((sum, image) => sum + image.regions.length, 0);
  const weights = facts.images.flatMap((image) => image.targets.map((target) => target.weight)).filter((weight) => weight !== 1);
  const unknown = [
    ["Weighted", weights.length, `mean ${(weights.reduce((sum, weight) => sum + weight, 0) / weights.length).toFixed(2)}`],
    ["Ignored regions", regions, "no background"],
  ].filter(([, count]) => count).map(([label, count, note]) => [label, String(count), note]);
  const tiles = [
    ["Boxes", String(boxes), counted(facts.images.length, "image")],
    ["Matched", String(boxes - unmatched), boxes ? percent((boxes - unmatched) / boxes) : ""],
    ["Unmatched", String(unmatched), unmatched ? "never learned" : "all are learned"],
    ...facts.levels.map((level, number) => [`Anchor cells on ${level.name}`, String(sum((one) => one.levels[number].length)),
      `${sum((one) => new Set(one.levels[number].map((one) => one.target)).size)} boxes`]),
    ["Collisions", String(sum((one) => one.collisions.length)), "anchor cells of several boxes"],
    ...unknown,
  ];
  byId("summary").replaceChildren(...tiles.map(([label, value, note]) => make("li", { "data-label": label },
    make("span", { class: "label" }, label), make("span", { class: "value" }, value), make("span", { class: "note" }, note))));
  byId("moved").hidden = isOriginal();
}

// Boxes and collisions of the image ---------------------------------------------------------------------------------

function drawBoxes() {
  const image = imageNow(), now = foundNow();
  const costs = image.costs ? costsOfBoxes(image) : null, weighted = isWeighted(image);
  const order = image.targets.map((_, number) => number);
  if (costs) order.sort((a, b) => costs[b].total - costs[a].total || a - b);
  const most = costs ? Math.max(...costs.map((one) => one.total), 0) : 0;
  const rows = order.map((number) => {
    const target = image.targets[number], { w, h } = inPixels(target, image), anchorCells = now.ofBox[number];
    const cells = [
      make("td", {}, make("button", { type: "button", class: "link", "data-number": number, "aria-pressed": "false",
        click: () => change({ object: state.object === number ? null : number, hovered: null, predicted: null }) }, objectName(number))),
      make("td", { class: "number" }, `${px(w)} x ${px(h)}`),
      weighted ? make("td", { class: "number" }, short(target.weight)) : null,
      ...facts.levels.map((_, level) => make("td", { class: "number" }, String(anchorCells.filter((one) => one.level === level).length || "-"))),
    ];
    if (costs) {
      const cost = costs[number];
      cells.push(make("td", { class: "number" }, cost.anchorCells ? cost.iou.toFixed(2) : "-"),
        make("td", { class: "number" }, percent(cost.total / image.costs.terms.total), costBar(cost, most)));
    }
    return make("tr", { class: anchorCells.length ? "" : "fails", "data-number": number,
      pointerenter: (event) => { if (event.pointerType === "mouse") change({ hovered: number }); },
      pointerleave: (event) => { if (event.pointerType === "mouse") change({ hovered: null }); } }, cells);
  });
  const heads = ["Box", "Size, px", ...(weighted ? ["Weight"] : []), ...facts.levels.map((level) => level.name)];
  if (costs) heads.push(`Mean ${iouName}`, "Share of loss");
  byId("boxes").replaceChildren(rows.length ? table("Boxes of this image", heads, rows) : make("p", { class: "note" }, "This image has no boxes."));
  byId("collisions").replaceChildren(...collisionLines(now.collisions));
  drawRegions();
  markShown();
}

// The ignored regions of the image: why, and how many anchor cells of each level.
function drawRegions() {
  const image = imageNow();
  byId("regions").hidden = image.regions.length === 0;
  if (image.regions.length === 0) return;
  const ignored = ignoredNow();
  const rows = image.regions.map((region, number) => {
    const { w, h } = inPixels(region, image);
    return make("tr", { "data-number": number },
      make("td", {}, make("button", { type: "button", class: "link", "aria-pressed": "false",
        click: () => change({ region: state.region === number ? null : number }) }, regionName(number))),
      make("td", {}, region.why),
      make("td", { class: "number" }, `${px(w)} x ${px(h)}`),
      ...ignored.map((cells) => make("td", { class: "number" }, String(cells.filter((one) => one.region === number).length || "-"))));
  });
  byId("region-list").replaceChildren(
    make("p", { class: "note" }, "What lies there is neither object nor background. Of each level: anchor cells whose objectness loss is left out."),
    table("Ignored regions", ["Region", "Why", "Size, px", ...facts.levels.map((level) => level.name)], rows, "wrap"));
}

// One line for boxes that share anchor cells, with these cells.
function collisionLines(collisions) {
  if (collisions.length === 0) return [make("p", { class: "note" }, "No anchor cell is assigned to more than one box.")];
  const rule = facts.loss?.collision === "best" ? "the one whose predicted box overlaps most" : "the last in canonical order";
  const groups = new Map();
  for (const claim of collisions) {
    const key = [...claim.targets].sort((a, b) => a - b).join();
    groups.set(key, [...(groups.get(key) ?? []), claim]);
  }
  const rows = [...groups].map(([key, claims]) => make("tr", {},
    make("td", {}, key.split(",").flatMap((number, at) => [at ? ", " : "", make("button", { type: "button", class: "link",
      click: () => change({ object: Number(number), hovered: null, predicted: null }) }, objectName(Number(number)))])),
    ...facts.levels.map((_, level) => make("td", {}, claims.filter((claim) => claim.level === level)
      .map((claim) => `${claim.anchor + 1} (${claim.column}, ${claim.row})`).join("; ") || "-"))));
  return [
    make("p", { class: "note" }, "Anchor cells that are assigned to several boxes. Each of these boxes adds box and class loss " +
      `there; for objectness one box counts: ${rule}.`),
    table("Collisions", ["Boxes", ...facts.levels.map((level) => level.name)], rows, "wrap")];
}

function markShown() {
  const shown = boxShown();
  for (const row of byId("boxes").querySelectorAll("tbody tr")) row.classList.toggle("shown", Number(row.dataset.number) === shown);
  for (const button of byId("boxes").querySelectorAll("button")) {
    button.setAttribute("aria-pressed", String(Number(button.dataset.number) === state.object));
  }
  for (const row of byId("region-list").querySelectorAll("tbody tr")) {
    const isShown = Number(row.dataset.number) === state.region;
    row.classList.toggle("shown", isShown);
    row.querySelector("button").setAttribute("aria-pressed", String(isShown));
  }
}

// Controls ----------------------------------------------------------------------------------------------------------

function makeControls() {
  const choices = [["All levels", null], ...facts.levels.map((level, number) => [level.name, number])];
  byId("levels").replaceChildren(...choices.map(([text, level]) => make("button", { type: "button", "data-level": String(level),
    click: () => change({ level }) }, text)));
  for (const input of [byId("limit"), byId("limit-number")]) {
    input.addEventListener("input", () => {
      const limit = Number(input.value);
      if (input.value !== "" && limit > 1 && limit <= 1000) change({ limit });
    });
  }
  for (const button of document.querySelectorAll(".reset")) {
    button.addEventListener("click", () => change({ limit: original.limit, anchors: copyOf(original.anchors) }));
  }
  byId("anchor-table").replaceChildren(...facts.levels.map(anchorEditors));
}

// Two numbers and two sliders an anchor; the sliders are of logarithms, from 1/8 of the stride to 32 times it.
function anchorEditors(level, number) {
  const set = (index, side, value) => {
    if (!(Number.isFinite(value) && value > 0)) return;
    const anchors = copyOf(state.anchors);
    anchors[number][index][side] = value;
    change({ anchors });
  };
  const editor = (index, side) => {
    const label = `${level.name} anchor ${index + 1}, ${side ? "height" : "width"} in pixels`;
    return make("span", { class: "editor" },
      make("input", { type: "number", min: "0.5", step: "any", "aria-label": label, "data-anchor": `${number},${index},${side}`,
        input: (event) => set(index, side, event.target.valueAsNumber) }),
      make("input", { type: "range", min: "-3", max: "5", step: "0.01", "aria-label": `${label}, slider`, "data-anchor": `${number},${index},${side}`,
        input: (event) => set(index, side, Math.round(10 * level.stride * 2 ** Number(event.target.value)) / 10) }));
  };
  return make("fieldset", {}, make("legend", {}, `${level.name}, stride ${level.stride} px`),
    level.anchors.map((_, index) => make("div", { class: "anchor" }, make("i", { class: `swatch anchor-${index % 6}` }),
      editor(index, 0), " x ", editor(index, 1))));
}

// Inputs follow the state, but not the one that is being typed into.
function drawControls() {
  const show = (input, value) => { if (document.activeElement !== input || Number(input.value) !== value) input.value = String(value); };
  for (const button of byId("levels").children) button.setAttribute("aria-pressed", String(button.dataset.level === String(state.level)));
  show(byId("limit"), state.limit);
  show(byId("limit-number"), state.limit);
  for (const input of byId("anchor-table").querySelectorAll("input")) {
    const [number, index, side] = input.dataset.anchor.split(",").map(Number), value = state.anchors[number][index][side];
    if (input.type === "number") show(input, value);
    else if (document.activeElement !== input) input.value = String(Math.log2(value / facts.levels[number].stride));
  }
  for (const button of document.querySelectorAll(".reset")) button.disabled = isOriginal();
  for (const note of document.querySelectorAll(".stale")) note.hidden = isOriginal();
}

// Keys: left and right for images; up and down for boxes, from the picture or the list of boxes.
function onKey(event) {
  if (event.altKey || event.ctrlKey || event.metaKey || event.target.closest("input, .scroll:focus")) return;
  const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -1, ArrowDown: 1 }[event.key];
  if (event.key === "Escape") change({ object: null, hovered: null, region: null, predicted: null });
  else if (event.key === "ArrowLeft" || event.key === "ArrowRight") {
    change({ image: (state.image + step + facts.images.length) % facts.images.length });
    byId("images").children[state.image].scrollIntoView({ block: "nearest", inline: "nearest" });
    if (event.target.closest("#images")) byId("images").children[state.image].firstChild.focus();
  } else if (step && event.target.closest("#stage, #boxes")) {
    const order = [...byId("boxes").querySelectorAll("tbody tr")].map((row) => Number(row.dataset.number));
    if (!order.length) return;
    const at = order.indexOf(state.object);
    const next = order[at < 0 ? (step > 0 ? 0 : order.length - 1) : (at + step + order.length) % order.length];
    change({ object: next, hovered: null, predicted: null });
    if (event.target.closest("#boxes")) byId("boxes").querySelector(`button[data-number="${next}"]`).focus();
  } else return;
  event.preventDefault();
}

listeners.push((keys, rule) => {
  const image = keys.has("image");
  if (rule || image) {
    drawImageList();
    drawBoxes();
  }
  if (rule) drawSummary();
  if (image) {
    drawHeading();
    drawPicture();
  } else drawOverlays();
  if (image || rule || ["object", "hovered", "region", "level"].some((key) => keys.has(key))) drawObject();
  if (image) drawCosts();
  else if ((keys.has("object") || keys.has("hovered")) && imageNow().costs) drawCellCosts(imageNow().costs);
  markShown();
  drawControls();
});

assignAll();
makeImageList();
makeControls();
stage.addEventListener("click", () => change({ object: null, region: null, predicted: null }));
document.addEventListener("keydown", onKey);
document.getElementById("page").hidden = false;
drawImageList();
drawHeading();
drawSummary();
drawPicture();
drawBoxes();
drawObject();
drawCosts();
drawControls();
