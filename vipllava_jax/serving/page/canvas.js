// The picture on the screen, and the canvas over it on which marks are painted.

import { byId } from './elements.js';
import { boundsOf, clamp, fitted, toPicture, toScreen, zoomed } from './geometry.js';
import { drawMark } from './shapes.js';
import { listen, state } from './state.js';

const MOST = 40; // the largest zoom, in pixels of the screen per pixel of the picture
const HANDLE = 5; // pixels, half the side of a handle
const stage = byId('stage');
const canvas = byId('canvas');
const image = byId('picture');
let view = { scale: 1, x: 0, y: 0 };
let isFitted = true;
let draft = null; // the mark that is being drawn

export const currentView = () => view;

/** Shows a mark that is being drawn; null for none. */
export function showDraft(mark) {
  draft = mark;
  paint();
}

/** The place of a pointer event on the canvas, in pixels of the screen. */
export function placeOf(event) {
  const box = canvas.getBoundingClientRect();
  return [event.clientX - box.left, event.clientY - box.top];
}

export const pictureAt = (event) => toPicture(view, placeOf(event));

export function zoom(factor, at = areaOf().map((side) => side / 2)) {
  const whole = fitted(state.picture.size, areaOf()).scale;
  const scale = clamp(view.scale * factor, whole, Math.max(MOST, whole));
  isFitted = scale === whole;
  view = isFitted ? fitted(state.picture.size, areaOf()) : kept(zoomed(view, scale / view.scale, at));
  paint();
}

export function pan(dx, dy) {
  if (isFitted) return;
  view = kept({ ...view, x: view.x + dx, y: view.y + dy });
  paint();
}

export function fit() {
  isFitted = true;
  if (state.picture) view = fitted(state.picture.size, areaOf());
  paint();
}

/** The index of the corner of the selected mark at a place of the screen; -1 for none. */
export function handleAt([x, y], reach) {
  const mark = state.marks[state.selected];
  if (!mark || mark.point) return -1;
  return corners(boundsOf(mark)).findIndex((corner) => {
    const [cx, cy] = toScreen(view, corner);
    return Math.hypot(x - cx, y - cy) <= reach;
  });
}

/** The corners of a box, clockwise from the upper left one; the one opposite to n is (n + 2) % 4. */
export const corners = ([x1, y1, x2, y2]) => [[x1, y1], [x2, y1], [x2, y2], [x1, y2]];

const areaOf = () => [stage.clientWidth, stage.clientHeight];

/** A view in which the picture covers the middle of the stage. */
function kept({ scale, x, y }) {
  const [width, height] = areaOf();
  const [w, h] = state.picture.size.map((side) => side * scale);
  return { scale, x: clamp(x, width / 2 - w, width / 2), y: clamp(y, height / 2 - h, height / 2) };
}

function paint() {
  const { picture, about } = state;
  if (!picture || !about) return;
  const ratio = devicePixelRatio;
  const [width, height] = areaOf().map((side) => Math.round(side * ratio));
  if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
  image.style.width = `${picture.size[0]}px`;
  image.style.transform = `translate(${view.x}px, ${view.y}px) scale(${view.scale})`;
  image.classList.toggle('magnified', view.scale > 2);
  const context = canvas.getContext('2d');
  context.setTransform(1, 0, 0, 1, 0, 0);
  context.clearRect(0, 0, width, height);
  context.setTransform(view.scale * ratio, 0, 0, view.scale * ratio, view.x * ratio, view.y * ratio);
  for (const mark of draft ? [...state.marks, draft] : state.marks) {
    drawMark(context, mark, picture.size, about.colors[mark.color] ?? rgbOf(mark.color));
  }
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  if (state.mode === 'regions') state.marks.forEach((mark, n) => paintNumber(context, mark, n + 1));
  if (!draft && state.marks[state.selected]) paintSelection(context, state.marks[state.selected]);
}

function paintSelection(context, mark) {
  const [x1, y1, x2, y2] = boundsOf(mark);
  const [[left, top], [right, bottom]] = [toScreen(view, [x1, y1]), toScreen(view, [x2, y2])];
  const margin = mark.point ? (12 * view.scale * Math.max(...state.picture.size)) / 336 : 0;
  for (const [color, dash] of [['#fff', []], ['#111', [4, 4]]]) {
    context.strokeStyle = color;
    context.setLineDash(dash);
    context.strokeRect(left - margin, top - margin, right - left + 2 * margin, bottom - top + 2 * margin);
  }
  context.setLineDash([]);
  if (mark.point) return;
  context.fillStyle = '#fff';
  for (const [x, y] of corners([left, top, right, bottom])) {
    context.fillRect(x - HANDLE, y - HANDLE, 2 * HANDLE, 2 * HANDLE);
    context.strokeRect(x - HANDLE, y - HANDLE, 2 * HANDLE, 2 * HANDLE);
  }
}

function paintNumber(context, mark, number) {
  const [x1, y1] = boundsOf(mark);
  const [x, y] = toScreen(view, [x1, y1]);
  context.font = '600 12px system-ui';
  const width = context.measureText(number).width + 10;
  context.fillStyle = '#111';
  context.fillRect(x, y, width, 18);
  context.fillStyle = '#fff';
  context.fillText(number, x + 5, y + 13);
}

/** '#rrggbb' -> its three numbers. */
const rgbOf = (color) => [1, 3, 5].map((at) => parseInt(color.slice(at, at + 2), 16));

listen((changed) => {
  if (changed.has('picture')) {
    image.src = state.picture.url;
    image.alt = state.picture.name;
    fit();
  } else paint();
});
new ResizeObserver(() => (isFitted ? fit() : paint())).observe(stage);
