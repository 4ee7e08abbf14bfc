// Drawing, moving and zooming by mouse, touch or pen.

import { corners, currentView, handleAt, pan, pictureAt, placeOf, showDraft, zoom } from './canvas.js';
import { byId } from './elements.js';
import { boundsOf, boxAround, curveAlong, inside, isLargeEnough, moved, simplified, stretched } from './geometry.js';
import { GESTURES, markAt } from './shapes.js';
import { change, edit, state } from './state.js';

const canvas = byId('canvas');
const pointers = new Map(); // the places of those that are down, by their ids
let gesture = null; // { move(place), end() } of the pointer that came first
let serial = 0;

function start(event) {
  if (!state.picture || (event.pointerType === 'mouse' && event.button > 1)) return;
  canvas.setPointerCapture(event.pointerId);
  pointers.set(event.pointerId, placeOf(event));
  if (pointers.size === 2) {
    gesture?.cancel();
    gesture = null;
  }
  if (pointers.size > 1) return;
  const reach = event.pointerType === 'mouse' ? 9 : 20;
  gesture = event.button === 1 ? panning() : begin(pictureAt(event), placeOf(event), reach);
}

/** The gesture that begins at a point: of the selected mark's corner, of a mark, or of a new one. */
function begin(point, place, reach) {
  const corner = handleAt(place, reach);
  if (corner >= 0) return resizing(corner);
  if (state.tool !== 'select') return drawing(state.tool, point, reach);
  const found = markAt(state.marks, point, reach / currentView().scale);
  change({ selected: found });
  return found >= 0 ? moving(found, point) : panning();
}

function drawing(shape, start, reach) {
  const { size } = state.picture;
  const points = [start];
  const kind = GESTURES[shape];
  const markNow = () => {
    const color = state.color;
    if (kind === 'point') return { shape, point: inside(points.at(-1), size), color };
    if (kind === 'box') return { shape, box: boxAround([start, points.at(-1)].map((p) => inside(p, size))), color };
    const path = shape === 'scribble' ? curveAlong(points) : simplified(points, 0.5);
    return { shape, polygon: path.map((p) => inside(p, size)), color };
  };
  showDraft(kind === 'point' ? markNow() : null);
  return {
    move(point) {
      points.push(point);
      showDraft(markNow());
    },
    end() {
      showDraft(null);
      const mark = markNow();
      const isPath = kind !== 'path' || mark.polygon.length > 2;
      if (isPath && isLargeEnough(mark)) edit([...state.marks, mark], -1);
      else change({ selected: markAt(state.marks, start, reach / currentView().scale) });
    },
    cancel: () => showDraft(null),
  };
}

function moving(index, start) {
  const before = state.marks[index];
  return changing(index, (point) => moved(before, [point[0] - start[0], point[1] - start[1]], state.picture.size));
}

function resizing(corner) {
  const index = state.selected;
  const before = state.marks[index];
  const fixed = corners(boundsOf(before))[(corner + 2) % 4];
  return changing(index, (point) => stretched(before, boxAround([fixed, inside(point, state.picture.size)]), state.picture.size));
}

/** A gesture that changes one mark, as one step to undo. */
function changing(index, markFor) {
  const key = `gesture ${(serial += 1)}`;
  return {
    move(point) {
      const mark = markFor(point);
      if (isLargeEnough(mark)) edit(state.marks.with(index, mark), index, key);
    },
    end() {},
    cancel() {},
  };
}

function panning() {
  return { end() {}, cancel() {}, pans: true };
}

function move(event) {
  const before = pointers.get(event.pointerId);
  if (!before) return;
  const now = placeOf(event);
  if (pointers.size > 1) pinch(event.pointerId, before, now);
  else if (gesture?.pans) pan(now[0] - before[0], now[1] - before[1]);
  else if (gesture) [...(event.getCoalescedEvents?.() ?? []), event].forEach((part) => gesture.move(pictureAt(part)));
  pointers.set(event.pointerId, now);
}

/** Two pointers zoom by their distance, and pan. */
function pinch(id, before, now) {
  const other = [...pointers].find(([key]) => key !== id)[1];
  const distance = (place) => Math.hypot(place[0] - other[0], place[1] - other[1]);
  if (distance(before) > 10) zoom(distance(now) / distance(before), other);
  pan((now[0] - before[0]) / 2, (now[1] - before[1]) / 2);
}

function end(event) {
  if (!pointers.delete(event.pointerId)) return;
  if (event.type === 'pointercancel') gesture?.cancel();
  else gesture?.end();
  gesture = null;
}

canvas.addEventListener('pointerdown', start);
canvas.addEventListener('pointermove', move);
canvas.addEventListener('pointerup', end);
canvas.addEventListener('pointercancel', end);
canvas.addEventListener(
  'wheel',
  (event) => {
    if (!state.picture || !(event.ctrlKey || event.metaKey)) return;
    event.preventDefault();
    zoom(Math.exp(-event.deltaY / 200), placeOf(event));
  },
  { passive: false },
);
