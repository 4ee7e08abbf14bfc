// Which gesture makes each shape, and how it is drawn, as by the server.

import { createSvg } from './elements.js';
import { corners, minus, span, spread } from './geometry.js';

/** What makes a shape: a box is dragged, a point pressed, a path drawn. */
export const GESTURES = {
  rectangle: 'box',
  ellipse: 'box',
  triangle: 'box',
  point: 'point',
  arrow: 'point',
  scribble: 'path',
  mask: 'path',
  'mask contour': 'path',
};

const closed = (points) => `M${points.join('L')}Z`;
const oval = (x, y, rx, ry) => `M${x - rx},${y}a${rx},${ry} 0 1 0 ${2 * rx},0a${rx},${ry} 0 1 0 ${-2 * rx},0Z`;
const whole = (pixels) => Math.max(Math.floor(pixels), 1); // as the server rounds

/** The line and the area of each shape, as paths whose whole numbers are the middles of pixels. */
const PATHS = {
  rectangle({ box: [start, end], inset }) {
    return { line: closed(corners([start.map((value) => value + inset), end.map((value) => value - inset)])) };
  },
  ellipse({ sides, middle, inset }) {
    const radii = sides.map((side) => Math.max(0.625 * side - inset, 0.5));
    return { line: oval(...middle, ...radii) };
  },
  triangle({ box: [[x1, y1], [x2, y2]], points, middle }) {
    return { line: closed(points.length > 2 ? spread(points, 3) : [[middle[0], y1], [x2, y2], [x1, y2]]) };
  },
  point({ middle, unit }) {
    return { area: oval(...middle, whole(8 * unit) + 0.5, whole(8 * unit) + 0.5) };
  },
  /** From its tip towards the middle of the picture. */
  arrow({ sides, middle: [x, y], unit, size }) {
    const long = whole(50 * unit);
    const length = ((0.8 * Math.min(...sides) || long) + long) / 2;
    const angle = Math.atan2(size[1] / 2 - y, size[0] / 2 - x);
    const head = Math.max(0.35 * length, Math.floor(6 * unit));
    const along = (far, turn = 0) => [x + far * Math.cos(angle + turn), y + far * Math.sin(angle + turn)];
    const area = closed([[x, y], along(head, Math.PI / 3), along(head, -Math.PI / 3)]);
    return { line: `M${along(head / 2)}L${along(length - head)}`, area };
  },
  /** A curve with four control points, or an S in a box. */
  scribble({ box: [start], sides, points }) {
    const places = [[0.1, 0.8], [0.4, -0.4], [0.6, 1.4], [0.9, 0.2]];
    const inBox = (place) => place.map((part, k) => start[k] + part * sides[k]);
    const [first, ...rest] = points.length > 2 ? spread(points, 4) : places.map(inBox);
    return { line: `M${first}C${rest}` };
  },
  mask: ({ polygon }) => ({ area: closed(polygon) }),
  'mask contour': ({ polygon, unit }) => ({ line: closed(polygon), width: 2 * whole(unit) + 1 }),
};

/** A mark on a picture, as an element in pixels of that picture. */
export function drawn(mark, size) {
  const points = mark.points.map((point) => point.map((value, k) => Math.min(value, size[k] - 1)));
  const unit = Math.max(...size) / 336;
  const box = span(points);
  const sides = minus(box[1], box[0]);
  const middle = [0, 1].map((k) => box[0][k] + sides[k] / 2);
  const polygon = points.length > 2 ? points : corners(box);
  const usual = whole(3 * unit);
  const place = { points, box, sides, middle, polygon, unit, size, inset: (usual - 1) / 2 };
  const { line = '', area = '', width = usual } = PATHS[mark.shape](place);
  return createSvg(
    'g',
    { class: `mark ${mark.shape}`, color: mark.color, transform: 'translate(0.5 0.5)' },
    createSvg('path', { class: 'reach', d: line + area }),
    createSvg('path', { class: 'line', d: line, 'stroke-width': width }),
    createSvg('path', { class: 'area', d: area }),
  );
}

export function icon(shape) {
  const box = [[7, 11], [33, 29]];
  const ring = [[6, 18], [13, 8], [25, 7], [35, 16], [33, 27], [20, 33], [8, 28]];
  const points = { box, point: shape === 'arrow' ? [[7, 7]] : [[20, 20]], path: shape === 'scribble' ? box : ring };
  const mark = drawn({ shape, color: 'currentColor', points: points[GESTURES[shape]] }, [336, 336]);
  return createSvg('svg', { viewBox: '0 0 40 40' }, mark);
}
