// Boxes and polygons as shares of the picture, 0 to 1; nothing here knows of the screen.

export const SMALLEST = 0.005;

/** A value between two others. */
export function within(value, low, high) {
  return Math.min(high, Math.max(low, value));
}

/** The box between two points, inside the picture and not flat. */
export function boxBetween([ax, ay], [bx, by]) {
  const [x0, x1] = side(ax, bx);
  const [y0, y1] = side(ay, by);
  return [x0, y0, x1, y1];
}

function side(a, b) {
  const low = within(Math.min(a, b), 0, 1 - SMALLEST);
  return [low, within(Math.max(a, b), low + SMALLEST, 1)];
}

/** The box around a region. */
export function bounds(roi) {
  if (roi.box) return roi.box;
  const xs = roi.polygon.map((point) => point[0]);
  const ys = roi.polygon.map((point) => point[1]);
  return [Math.min(...xs), Math.min(...ys), Math.max(...xs), Math.max(...ys)];
}

/** A region moved, as far as the picture lets it. */
export function moved(roi, dx, dy) {
  const [x0, y0, x1, y1] = bounds(roi);
  const x = within(dx, -x0, 1 - x1);
  const y = within(dy, -y0, 1 - y1);
  if (roi.box) return { box: [x0 + x, y0 + y, x1 + x, y1 + y] };
  return { polygon: roi.polygon.map(([px, py]) => [within(px + x, 0, 1), within(py + y, 0, 1)]) };
}

/** A region made wider and higher; its top left corner stays. */
export function grown(roi, dx, dy) {
  const [x0, y0, x1, y1] = bounds(roi);
  const right = within(x1 + dx, x0 + SMALLEST, 1);
  const bottom = within(y1 + dy, y0 + SMALLEST, 1);
  if (roi.box) return { box: [x0, y0, right, bottom] };
  const sx = (right - x0) / (x1 - x0);
  const sy = (bottom - y0) / (y1 - y0);
  return { polygon: roi.polygon.map(([x, y]) => [x0 + (x - x0) * sx, y0 + (y - y0) * sy]) };
}

/** A box with the edges that a handle ("nw" ... "e") holds moved to a point. */
export function dragged(box, handle, [x, y]) {
  let [x0, y0, x1, y1] = box;
  if (handle.includes("w")) x0 = within(x, 0, x1 - SMALLEST);
  if (handle.includes("e")) x1 = within(x, x0 + SMALLEST, 1);
  if (handle.includes("n")) y0 = within(y, 0, y1 - SMALLEST);
  if (handle.includes("s")) y1 = within(y, y0 + SMALLEST, 1);
  return [x0, y0, x1, y1];
}

/** The handles of a box with their places. */
export function handles([x0, y0, x1, y1]) {
  const x = (x0 + x1) / 2;
  const y = (y0 + y1) / 2;
  const corners = { nw: [x0, y0], ne: [x1, y0], se: [x1, y1], sw: [x0, y1] };
  return { n: [x, y0], e: [x1, y], s: [x, y1], w: [x0, y], ...corners };
}

/** The corners of a region, in order. */
export function corners(roi) {
  if (roi.polygon) return roi.polygon;
  const [x0, y0, x1, y1] = roi.box;
  return [
    [x0, y0],
    [x1, y0],
    [x1, y1],
    [x0, y1],
  ];
}

/**
 * The cells that a region selects, row-major, as the search takes them: those of which at least
 * half lies inside, else the one that is covered most.
 */
export function cellsOf(roi, { h, w }) {
  const covers = [];
  for (let row = 0; row < h; row += 1) {
    for (let col = 0; col < w; col += 1) {
      const inside = [
        [0, col / w, 1],
        [0, (col + 1) / w, -1],
        [1, row / h, 1],
        [1, (row + 1) / h, -1],
      ].reduce((points, [axis, at, sign]) => clipped(points, axis, at, sign), corners(roi));
      covers.push(area(inside) * h * w);
    }
  }
  const taken = covers.flatMap((cover, cell) => (cover >= 0.5 - 1e-9 && cover > 0 ? [cell] : []));
  if (taken.length) return taken;
  const most = Math.max(...covers);
  return [covers.findIndex((cover) => cover >= most * (1 - 1e-9))];
}

function clipped(points, axis, at, sign) {
  const kept = [];
  points.forEach((after, place) => {
    const before = points[(place + points.length - 1) % points.length];
    const wasIn = sign * (before[axis] - at) >= 0;
    const isIn = sign * (after[axis] - at) >= 0;
    if (wasIn !== isIn) {
      const share = (at - before[axis]) / (after[axis] - before[axis]);
      const other = before[1 - axis] + share * (after[1 - axis] - before[1 - axis]);
      kept.push(axis === 0 ? [at, other] : [other, at]);
    }
    if (isIn) kept.push(after);
  });
  return kept;
}

function area(points) {
  const twice = points.reduce((sum, [x, y], place) => {
    const [nextX, nextY] = points[(place + 1) % points.length];
    return sum + x * nextY - nextX * y;
  }, 0);
  return Math.abs(twice) / 2;
}
