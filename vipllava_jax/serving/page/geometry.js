// Points, boxes and polygons in pixels of the picture, and where they are on the screen.

export const clamp = (value, low, high) => Math.min(Math.max(value, low), high);

/** The view in which a picture of `size` fills an area, both [width, height]. */
export function fitted(size, area) {
  const scale = Math.min(area[0] / size[0], area[1] / size[1]);
  return { scale, x: (area[0] - size[0] * scale) / 2, y: (area[1] - size[1] * scale) / 2 };
}

/** The view after zooming by a factor, with the point [x, y] of the screen staying where it is. */
export function zoomed(view, factor, [x, y]) {
  return {
    scale: view.scale * factor,
    x: x - (x - view.x) * factor,
    y: y - (y - view.y) * factor,
  };
}

export const toPicture = (view, [x, y]) => [(x - view.x) / view.scale, (y - view.y) / view.scale];
export const toScreen = (view, [x, y]) => [x * view.scale + view.x, y * view.scale + view.y];

/** The nearest whole pixel inside a picture. */
export const inside = ([x, y], size) => [clamp(Math.round(x), 0, size[0]), clamp(Math.round(y), 0, size[1])];

/** [x1, y1, x2, y2] around points. */
export function boxAround(points) {
  const [xs, ys] = [points.map((p) => p[0]), points.map((p) => p[1])];
  return [Math.min(...xs), Math.min(...ys), Math.max(...xs), Math.max(...ys)];
}

/** All points that a mark is made of. */
export function pointsOf(mark) {
  if (mark.point) return [mark.point];
  if (mark.box) return [mark.box.slice(0, 2), mark.box.slice(2)];
  return mark.polygon;
}

export const boundsOf = (mark) => boxAround(pointsOf(mark));

/** A mark whose points are changed by a function of a point. */
export function mapped(mark, change) {
  if (mark.point) return { ...mark, point: change(mark.point) };
  if (mark.box) return { ...mark, box: boxAround(pointsOf(mark).map(change)) };
  return { ...mark, polygon: mark.polygon.map(change) };
}

/** A mark moved by [dx, dy], as far as the picture of this size goes. */
export function moved(mark, [dx, dy], size) {
  const [x1, y1, x2, y2] = boundsOf(mark);
  const step = [Math.round(clamp(dx, -x1, size[0] - x2)), Math.round(clamp(dy, -y1, size[1] - y2))];
  return mapped(mark, ([x, y]) => [x + step[0], y + step[1]]);
}

/** A mark stretched so that its bounds become a box; one of a point moves to the middle of it. */
export function stretched(mark, box, size) {
  const [x1, y1, x2, y2] = boundsOf(mark);
  const [fx, fy] = [(box[2] - box[0]) / (x2 - x1 || 1), (box[3] - box[1]) / (y2 - y1 || 1)];
  if (mark.point) return mapped(mark, () => inside([(box[0] + box[2]) / 2, (box[1] + box[3]) / 2], size));
  return mapped(mark, ([x, y]) => inside([box[0] + (x - x1) * fx, box[1] + (y - y1) * fy], size));
}

/** Whether a mark can be drawn: one of an area is at least two pixels wide and high. */
export function isLargeEnough(mark) {
  const [x1, y1, x2, y2] = boundsOf(mark);
  return Boolean(mark.point) || (x2 - x1 >= 2 && y2 - y1 >= 2);
}

/** A stroke without the points that lie within `tolerance` of the line through the others. */
export function simplified(points, tolerance) {
  if (points.length < 3) return points;
  const [a, b] = [points[0], points.at(-1)];
  const far = points.map((p) => distanceToSegment(p, a, b));
  const most = far.indexOf(Math.max(...far));
  if (far[most] <= tolerance) return [a, b];
  return [
    ...simplified(points.slice(0, most + 1), tolerance).slice(0, -1),
    ...simplified(points.slice(most), tolerance),
  ];
}

export function distanceToSegment([x, y], [ax, ay], [bx, by]) {
  const length = (bx - ax) ** 2 + (by - ay) ** 2;
  const t = length ? clamp(((x - ax) * (bx - ax) + (y - ay) * (by - ay)) / length, 0, 1) : 0;
  return Math.hypot(x - ax - t * (bx - ax), y - ay - t * (by - ay));
}

/**
 * The four control points of the cubic Bezier curve nearest to a stroke, by least squares with both ends kept:
 * the server draws scribbles as such curves.
 */
export function curveAlong(points, rounds = 12) {
  const lengths = [0];
  points.slice(1).forEach((p, n) => lengths.push(lengths[n] + Math.hypot(p[0] - points[n][0], p[1] - points[n][1])));
  let times = lengths.map((length) => length / (lengths.at(-1) || 1));
  let controls = curveAt(points, times);
  for (let round = 0; round < rounds; round += 1) {
    times = times.map((t, n) => nearerTime(controls, points[n], t));
    controls = curveAt(points, times);
  }
  return controls;
}

/** The control points of the curve that is nearest to each point at its time, from 0 to 1. */
function curveAt(points, times) {
  const [first, last] = [points[0], points.at(-1)];
  let [aa, ab, bb] = [0, 0, 0];
  const [ax, bx] = [[0, 0], [0, 0]];
  points.forEach((p, n) => {
    const [c, a, b, d] = weightsAt(times[n]);
    [aa, ab, bb] = [aa + a * a, ab + a * b, bb + b * b];
    for (const k of [0, 1]) {
      const rest = p[k] - c * first[k] - d * last[k];
      ax[k] += a * rest;
      bx[k] += b * rest;
    }
  });
  const determinant = aa * bb - ab * ab;
  if (Math.abs(determinant) < 1e-9) return [first, first, last, last];
  const solve = (u, v, p, q) => [0, 1].map((k) => (u * p[k] - v * q[k]) / determinant);
  return [first, solve(bb, ab, ax, bx), solve(aa, ab, bx, ax), last];
}

const weightsAt = (t) => [(1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t * t * (1 - t), t ** 3];

/** A step of Newton's method towards the time at which a curve is nearest to a point. */
function nearerTime(controls, point, t) {
  const along = (weights, list) => [0, 1].map((k) => weights.reduce((sum, w, n) => sum + w * list[n][k], 0));
  const differences = (list) => list.slice(1).map((p, n) => [p[0] - list[n][0], p[1] - list[n][1]]);
  const [d, dd] = [differences(controls), differences(differences(controls))];
  const [x, y] = along(weightsAt(t), controls).map((value, k) => value - point[k]);
  const [vx, vy] = along([3 * (1 - t) ** 2, 6 * t * (1 - t), 3 * t * t], d);
  const [wx, wy] = along([6 * (1 - t), 6 * t], dd);
  const slope = vx * vx + vy * vy + x * wx + y * wy;
  return slope > 1e-9 ? clamp(t - (x * vx + y * vy) / slope, 0, 1) : t;
}
