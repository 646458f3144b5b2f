// What the page shows at the moment, and what follows from it. Every change goes through `change`, which draws anew.

const facts = JSON.parse(document.getElementById("facts").textContent);
const original = { limit: facts.ratio_limit, anchors: facts.levels.map((level) => level.anchors) };
const copyOf = (anchors) => anchors.map((level) => level.map((pair) => [...pair]));
const state = {
  image: 0,
  object: null,        // number of the selected box of the image
  hovered: null,       // number of the box under the pointer
  region: null,        // number of the selected ignored region of the image
  level: null,         // number of the level shown, null for all
  predicted: null,         // a predicted box under the pointer or tapped: {box: [cx, cy, w, h] in px, level, row, column, anchor}
  limit: original.limit,
  anchors: copyOf(original.anchors),
};
let found = [];        // for each image: the result of `assignedTo`
const listeners = [];

const cellKey = (one) => `${one.anchor},${one.row},${one.column}`;

function isOriginal() {
  return state.limit === original.limit && JSON.stringify(state.anchors) === JSON.stringify(original.anchors);
}

// The assignment of one image: candidates of each level, those of each box, and anchor cells that several boxes share.
function assignedTo(image) {
  const boxes = image.targets.map((target) => target.box);
  const ofBox = boxes.map(() => []);
  const collisions = [];
  const levels = facts.levels.map((level, number) => {
    const rows = image.height / level.stride, columns = image.width / level.stride;
    const candidates = assignLevel(boxes, anchorsInCells(state.anchors[number], level.stride), rows, columns, state.limit);
    const claims = new Map();
    for (const one of candidates) {
      one.level = number;
      ofBox[one.target].push(one);
      const key = cellKey(one);
      if (!claims.has(key)) claims.set(key, { level: number, anchor: one.anchor, row: one.row, column: one.column, targets: [] });
      const claim = claims.get(key);
      if (!claim.targets.includes(one.target)) claim.targets.push(one.target);
    }
    collisions.push(...[...claims.values()].filter((claim) => claim.targets.length > 1));
    return candidates;
  });
  return { levels, ofBox, collisions, unmatched: ofBox.flatMap((anchorCells, number) => (anchorCells.length ? [] : [number])) };
}

function assignAll() {
  found = facts.images.map(assignedTo);
}

// The anchor cells of the shown image that are ignored, of each level a list as of `ignoredLevel` without those of
// boxes; worked out when first asked for, since a region may cover everything.
function ignoredNow() {
  const image = imageNow(), now = foundNow();
  now.ignored ??= facts.levels.map((level, number) => {
    const ofBoxes = new Set(now.levels[number].map(cellKey));
    const anchors = anchorsInCells(state.anchors[number], level.stride);
    return ignoredLevel(image.regions.map((region) => region.box), anchors, image.height / level.stride,
      image.width / level.stride, state.limit).filter((one) => !ofBoxes.has(cellKey(one)));
  });
  return now.ignored;
}

// Take some values of the state, work out what follows, and tell who draws what changed.
function change(values) {
  const rule = "limit" in values || "anchors" in values;
  if ("image" in values && values.image !== state.image) values = { object: null, hovered: null, region: null, predicted: null, ...values };
  if (values.object != null) values = { region: null, ...values };
  if (values.region != null) values = { object: null, hovered: null, predicted: null, ...values };
  if (Object.keys(values).every((key) => state[key] === values[key])) return;
  Object.assign(state, values);
  if (rule) assignAll();
  const keys = new Set(Object.keys(values));
  for (const listener of listeners) listener(keys, rule);
}

const imageNow = () => facts.images[state.image];
const foundNow = () => found[state.image];
const boxShown = () => state.hovered ?? state.object;

// Centre and sides of a target or region in pixels of the network input.
function inPixels(target, image) {
  const [cx, cy, w, h] = target.box;
  return { cx: cx * image.width, cy: cy * image.height, w: w * image.width, h: h * image.height };
}

// Words and numbers -------------------------------------------------------------------------------------------------

const className = (target) => facts.classes[target.class];
const regionName = (number) => {
  const { class: id } = imageNow().regions[number];
  return `R${number + 1} ${id === null ? "of any class" : facts.classes[id]}`;
};
const isWeighted = (image) => image.targets.some((target) => target.weight !== 1);
const objectName = (number) => `#${number + 1} ${className(imageNow().targets[number])}`;
const levelName = (number) => facts.levels[number].name;
const counted = (count, one, many) => `${count} ${count === 1 ? one : many ?? one + "s"}`;
const percent = (share) => (!Number.isFinite(share) ? "-" : share > 0 && share < 0.001 ? "<0.1 %" : `${(100 * share).toFixed(1)} %`);
const px = (value) => String(Math.round(value * 10) / 10);
function short(value, digits = 3) {
  if (!Number.isFinite(value)) return "infinite";
  if (value === 0) return "0";
  return Math.abs(value) >= 1e-3 ? String(Number(value.toPrecision(digits))) : value.toExponential(1);
}

// An element with attributes, listeners (functions) and children (text stays text).
function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") element.addEventListener(name, value);
    else if (value !== null && value !== false) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return element;
}

function makeSvg(tag, attributes = {}, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") element.addEventListener(name, value);
    else if (value !== null && value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children.flat());
  return element;
}

// A table in a box of its own that scrolls sideways where it must. rows: elements <tr>.
function table(label, heads, rows, className = "") {
  return make("div", { class: `scroll ${rows.length > 12 ? "tall" : ""}`, tabindex: "0", role: "group", "aria-label": label },
    make("table", { class: className, "aria-label": label },
      make("thead", {}, make("tr", {}, heads.map((head) => make("th", { scope: "col" }, head)))),
      make("tbody", {}, rows)));
}
