// Points [x, y] in pixels of the picture, whose size is [width, height].

export const clamp = (value, low, high) => Math.min(Math.max(value, low), high);
export const plus = (point, other) => point.map((value, k) => value + other[k]);
export const minus = (point, other) => point.map((value, k) => value - other[k]);
export const distance = (point, other) => Math.hypot(...minus(point, other));

export const inside = (point, size) => point.map((value, k) => clamp(Math.round(value), 0, size[k]));

/** The upper left and the lower right corner of the box around points. */
export const span = (points) =>
  [Math.min, Math.max].map((end) => [0, 1].map((k) => end(...points.map((point) => point[k]))));

/** All corners of such a box; the one opposite to n is (n + 2) % 4. */
export const corners = ([[x1, y1], [x2, y2]]) => [[x1, y1], [x2, y1], [x2, y2], [x1, y2]];

export const spread = (points, n) => Array.from({ length: n }, (_, i) => points[Math.floor((points.length * i) / n)]);

/** A mark moved by [dx, dy], as far as the picture goes. */
export function moved(mark, by, size) {
  const [low, high] = span(mark.points);
  const step = by.map((value, k) => Math.round(clamp(value, -low[k], size[k] - high[k])));
  return { ...mark, points: mark.points.map((point) => plus(point, step)) };
}

/** A mark stretched from corner to corner of a box. */
export function stretched(mark, [start, end], size) {
  const [low, high] = span(mark.points);
  const place = (value, k) => start[k] + ((value - low[k]) / (high[k] - low[k])) * (end[k] - start[k]);
  return { ...mark, points: mark.points.map((point) => inside(point.map(place), size)) };
}

/** Whether a mark can be drawn: one of an area is at least two pixels wide and high. */
export function isDrawable({ points }) {
  const [low, high] = span(points);
  return points.length === 1 || Math.min(...minus(high, low)) >= 2;
}

const WEIGHTS = Array.from({ length: 101 }, (_, n) => n / 100) // of the control points, along the curve
  .map((t) => [(1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t * t * (1 - t), t ** 3]);

/** The control points of the cubic Bezier curve along a stroke, each of whose points pulls the inner two nearer. */
export function curveAlong(stroke) {
  const points = spread(stroke, 40);
  const controls = [...spread(stroke, 3), stroke.at(-1)];
  for (let round = 0; round < 60; round += 1) {
    const place = (weights) => [0, 1].map((k) => weights.reduce((sum, weight, n) => sum + weight * controls[n][k], 0));
    const curve = WEIGHTS.map(place);
    for (const point of points) {
      const distances = curve.map((near) => distance(near, point));
      const at = distances.indexOf(Math.min(...distances));
      for (const n of [1, 2]) {
        const pull = (8 * WEIGHTS[at][n]) / points.length;
        controls[n] = controls[n].map((value, k) => value + pull * (point[k] - curve[at][k]));
      }
    }
  }
  return controls;
}
