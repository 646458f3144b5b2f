"use strict";
// The rules of docs/objective.md, sections 3 and 6, as src/anchorite/loss/assign.py has them: numbers are float64 in
// both, and tests hold the two against each other. Nothing here knows of the page.

const SHIFTS = ["own", "left", "up", "right", "down"];

// Anchor sides of a level in cells, from [[w, h], ...] in pixels.
function anchorsInCells(anchorsPx, stride) {
  return anchorsPx.map(([w, h]) => [w / stride, h / stride]);
}

// The shape test of a box (w, h in cells) against one anchor: ratios of both sides and the larger one either way round.
function shapeTest(w, h, anchor) {
  const ratioW = w / anchor[0], ratioH = h / anchor[1];
  return { ratioW, ratioH, worst: Math.max(ratioW, 1 / ratioW, ratioH, 1 / ratioH) };
}

// Which of the five cells are assigned to a centre (x, y in cells): its own, left, up, right, down.
function cellsAssigned(x, y, rows, columns) {
  const near = (side) => side > 1 && side % 1 < 0.5;
  return [true, near(x), near(y), near(columns - x), near(rows - y)];
}

// Column and row of the five cells: the centre moved by half a cell, cut, and held in the grid.
function fiveCells(x, y, rows, columns) {
  const held = (value, cells) => Math.min(Math.max(Math.trunc(value), 0), cells - 1);
  return [[x, y], [x - 0.5, y], [x, y - 0.5], [x + 0.5, y], [x, y + 0.5]]
    .map(([cx, cy]) => ({ column: held(cx, columns), row: held(cy, rows) }));
}

// All candidates of one level in canonical order: by shift, then anchor, then target.
// boxes: [[cx, cy, w, h], ...] in 0..1; anchors: [[w, h], ...] in cells.
function assignLevel(boxes, anchors, rows, columns, ratioLimit) {
  const seen = boxes.map(([cx, cy, w, h]) => {
    const x = cx * columns, y = cy * rows, sides = [w * columns, h * rows];
    return {
      x, y, sides,
      assigned: cellsAssigned(x, y, rows, columns),
      cells: fiveCells(x, y, rows, columns),
      matches: anchors.map((anchor) => shapeTest(sides[0], sides[1], anchor).worst < ratioLimit),
    };
  });
  const found = [];
  for (let shift = 0; shift < SHIFTS.length; shift++) {
    for (let anchor = 0; anchor < anchors.length; anchor++) {
      seen.forEach((one, target) => {
        if (!one.assigned[shift] || !one.matches[anchor]) return;
        const { column, row } = one.cells[shift];
        found.push({
          shift, anchor, target, column, row,
          box: [one.x - column, one.y - row, one.sides[0], one.sides[1]],
        });
      });
    }
  }
  return found;
}

// The anchor cells of one level that regions ignore, those of objects among them: for each region and each of these
// {region, anchor, row, column, shape, half}: it would be a candidate of the region, were that an object; its anchor, in
// the middle of the cell, has half of its area in the region.
function ignoredLevel(regions, anchors, rows, columns, ratioLimit) {
  const found = new Map();
  const note = (rule, region, anchor, row, column) => {
    const key = `${region},${anchor},${row},${column}`;
    if (!found.has(key)) found.set(key, { region, anchor, row, column, shape: false, half: false });
    found.get(key)[rule] = true;
  };
  for (const { target, anchor, row, column } of assignLevel(regions, anchors, rows, columns, ratioLimit)) {
    note("shape", target, anchor, row, column);
  }
  // Of each cell along an axis, the length that the anchor in its middle shares with a region, where there is any.
  const shared = (centre, side, anchorSide, cells) => Array.from({ length: cells }, (_, cell) => {
    const middle = cell + 0.5;
    const length = Math.min(centre + side / 2, middle + anchorSide / 2) - Math.max(centre - side / 2, middle - anchorSide / 2);
    return { cell, length };
  }).filter(({ length }) => length > 0);
  regions.forEach(([cx, cy, w, h], region) => anchors.forEach(([width, height], anchor) => {
    const across = shared(cx * columns, w * columns, width, columns);
    for (const down of shared(cy * rows, h * rows, height, rows)) {
      for (const one of across) {
        if (down.length * one.length >= width * height / 2) note("half", region, anchor, down.cell, one.cell);
      }
    }
  }));
  return [...found.values()];
}

// The anchor nearest to a box of any level, and what would make it match.
// levels: [{stride, anchors: [[w, h], ...] in pixels}, ...]; width, height: of the box in pixels.
function nearestAnchor(width, height, levels) {
  let nearest = null;
  levels.forEach((level, number) => {
    anchorsInCells(level.anchors, level.stride).forEach((anchor, index) => {
      const test = shapeTest(width / level.stride, height / level.stride, anchor);
      if (nearest === null || test.worst < nearest.worst) nearest = { level: number, anchor: index, ...test };
    });
  });
  return nearest;
}
