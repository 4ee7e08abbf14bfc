// How each shape is drawn on a canvas, as the server draws it, and which gesture makes it.

import { boundsOf, distanceToSegment, pointsOf } from './geometry.js';

/** What a shape is made of: a box that is dragged, a point that is set, or a path that is drawn. */
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
export const HINTS = {
  box: 'Drag over the thing that you want to ask about.',
  point: 'Press on the thing that you want to ask about.',
  path: 'Draw around the thing, or across it, in one stroke.',
  select: 'Press on a mark to select it. Drag it to move it, or its corners to change its size.',
};

/** Draws a mark; the context is in pixels of the picture, whose size is [width, height]. */
export function drawMark(context, mark, size, rgb) {
  const unit = Math.max(...size) / 336;
  context.save();
  context.strokeStyle = context.fillStyle = `rgb(${rgb.join(' ')} / ${mark.shape === 'mask' ? 0.5 : 0.65})`;
  context.lineWidth = 3 * unit;
  context.lineJoin = 'round';
  PAINT[mark.shape](context, mark, unit, size);
  context.restore();
}

const PAINT = {
  rectangle(context, mark, unit) {
    const [x1, y1, x2, y2] = boundsOf(mark);
    context.strokeRect(x1 + 1.5 * unit, y1 + 1.5 * unit, x2 - x1 - 3 * unit, y2 - y1 - 3 * unit);
  },
  ellipse(context, mark, unit) {
    const [x1, y1, x2, y2] = boundsOf(mark);
    const radii = [x2 - x1, y2 - y1].map((side) => Math.max(0.625 * side - 1.5 * unit, 1));
    context.beginPath();
    context.ellipse((x1 + x2) / 2, (y1 + y2) / 2, ...radii, 0, 0, 2 * Math.PI);
    context.stroke();
  },
  triangle(context, mark) {
    const [x1, y1, x2, y2] = boundsOf(mark);
    context.stroke(closed(mark.polygon ? spread(mark.polygon, 3) : [[(x1 + x2) / 2, y1], [x2, y2], [x1, y2]]));
  },
  point(context, mark, unit) {
    const [x1, y1, x2, y2] = boundsOf(mark);
    context.beginPath();
    context.arc((x1 + x2) / 2, (y1 + y2) / 2, 8 * unit, 0, 2 * Math.PI);
    context.fill();
  },
  scribble(context, mark) {
    const [start, ...rest] = controlsOf(mark);
    context.lineCap = 'round';
    context.beginPath();
    context.moveTo(...start);
    context.bezierCurveTo(...rest.flat());
    context.stroke();
  },
  mask(context, mark) {
    context.fill(closed(cornersOf(mark)));
  },
  'mask contour'(context, mark, unit) {
    context.lineWidth = 2 * unit;
    context.stroke(closed(cornersOf(mark)));
  },
  arrow(context, mark, unit, size) {
    const { tip, end, neck, barbs } = arrowOf(mark, unit, size);
    context.beginPath();
    context.moveTo(...neck);
    context.lineTo(...end);
    context.stroke();
    context.fill(closed([tip, ...barbs]));
  },
};

/** An arrow's tip, its end towards the middle of the picture, and its head. */
function arrowOf(mark, unit, size) {
  const [x1, y1, x2, y2] = boundsOf(mark);
  const tip = [(x1 + x2) / 2, (y1 + y2) / 2];
  const long = 50 * unit;
  const length = ((0.8 * Math.min(x2 - x1, y2 - y1) || long) + long) / 2;
  const angle = Math.atan2(size[1] / 2 - tip[1], size[0] / 2 - tip[0]);
  const head = Math.max(0.35 * length, 6 * unit);
  const along = (distance, turn = 0) => [
    tip[0] + distance * Math.cos(angle + turn),
    tip[1] + distance * Math.sin(angle + turn),
  ];
  const barbs = [along(head, Math.PI / 3), along(head, -Math.PI / 3)];
  return { tip, end: along(length - head), neck: along(head / 2), barbs };
}

/** The control points of a scribble: those of its path, or of an S in its box. */
function controlsOf(mark) {
  if (mark.polygon) return spread(mark.polygon, 4);
  const [x1, y1, x2, y2] = boundsOf(mark);
  const places = [[0.1, 0.8], [0.4, -0.4], [0.6, 1.4], [0.9, 0.2]];
  return places.map(([x, y]) => [x1 + x * (x2 - x1), y1 + y * (y2 - y1)]);
}

const spread = (points, n) => Array.from({ length: n }, (_, i) => points[Math.floor((points.length * i) / n)]);

function cornersOf(mark) {
  const [x1, y1, x2, y2] = boundsOf(mark);
  return mark.polygon ?? [[x1, y1], [x2, y1], [x2, y2], [x1, y2]];
}

function closed(points) {
  const path = new Path2D();
  points.forEach((point) => path.lineTo(...point));
  path.closePath();
  return path;
}

/** The index of the topmost mark at a point, which may be `reach` pixels away; -1 for none. */
export function markAt(marks, point, reach) {
  return marks.findLastIndex((mark) => isAt(mark, point, reach));
}

function isAt(mark, [x, y], reach) {
  if (mark.shape === 'scribble' && mark.polygon) {
    return pointsOf(mark).slice(1).some((p, n) => distanceToSegment([x, y], mark.polygon[n], p) < 2 * reach);
  }
  const [x1, y1, x2, y2] = boundsOf(mark);
  const around = mark.point ? 2 * reach : reach;
  return x > x1 - around && x < x2 + around && y > y1 - around && y < y2 + around;
}
