import { pictureAt, zoom } from './canvas.js';
import { page } from './elements.js';
import { corners, curveAlong, distance, inside, isDrawable, minus, moved, plus, span, stretched } from './geometry.js';
import { GESTURES } from './shapes.js';
import { change, listen, put, state } from './state.js';

const SLIP = 4; // pixels of the screen
const { canvas, stage } = page;
const pointers = new Map(); // the places [x, y] on the screen of those that are down, by their ids
let gesture = null; // of the first: { index, found, markAt(point, passed) }; without markAt, it moves the view

const placeOf = (event) => [event.clientX, event.clientY];

function start(event) {
  if (!state.picture || event.button) return;
  pointers.set(event.pointerId, placeOf(event));
  canvas.setPointerCapture(event.pointerId);
  if (pointers.size > 1) return cancel();
  gesture = begin(event, pictureAt(event));
  draw(event);
}

/** The gesture that begins at a corner of the selected mark, on a mark, or anywhere. */
function begin({ target }, start) {
  const { marks, selected, tool, picture } = state;
  const { corner } = target.dataset;
  const found = [...page.drawn.children].indexOf(target.closest('.mark'));
  if (corner) {
    const places = corners(span(marks[selected].points));
    const opposite = places[(Number(corner) + 2) % 4];
    const boxTo = (point) => span([opposite, inside(plus(places[corner], minus(point, start)), picture.size)]);
    const markAt = (point) => stretched(marks[selected], boxTo(point), picture.size);
    return { index: selected, found: selected, markAt };
  }
  if (tool !== 'select') return { index: marks.length, found, markAt: newMark() };
  change({ selected: found });
  const markAt = (point) => moved(marks[found], minus(point, start), picture.size);
  return found < 0 ? {} : { index: found, found, markAt };
}

function newMark() {
  const { tool: shape, color, picture } = state;
  const stroke = [];
  const places = {
    point: (point) => [point],
    box: (point) => span([stroke[0], point]),
    path: () => (stroke.length < 3 ? [] : shape === 'scribble' ? curveAlong(stroke) : stroke),
  };
  return (point, passed) => {
    for (const place of passed) if (!stroke.length || distance(place, stroke.at(-1)) >= 1) stroke.push(place);
    return { shape, color, points: places[GESTURES[shape]](point).map((place) => inside(place, picture.size)) };
  };
}

function draw(event) {
  if (!gesture?.markAt) return;
  const passed = [...(event.getCoalescedEvents?.() ?? []), event].map(pictureAt);
  const mark = gesture.markAt(passed.at(-1), passed);
  const isNew = gesture.index === state.marks.length;
  const slip = SLIP / page.sheet.style.getPropertyValue('--scale');
  const isClick = isNew && mark.points.length > 1 && distance(...span(mark.points)) < slip;
  if (isDrawable(mark) && !isClick) change({ draft: { index: gesture.index, mark } });
  else if (isNew) change({ draft: null });
}

function move(event) {
  const before = pointers.get(event.pointerId);
  if (!before) return;
  const now = placeOf(event);
  if (pointers.size > 1) pinch(event.pointerId, before, now);
  else if (gesture?.markAt) draw(event);
  else stage.scrollBy(before[0] - now[0], before[1] - now[1]);
  pointers.set(event.pointerId, now);
}

function pinch(id, before, now) {
  const other = [...pointers].find(([key]) => key !== id)[1];
  if (distance(before, other) > 10) zoom(distance(now, other) / distance(before, other), other);
  stage.scrollBy((before[0] - now[0]) / 2, (before[1] - now[1]) / 2);
}

function end(event) {
  if (!pointers.delete(event.pointerId)) return;
  const { draft } = state;
  if (draft) put(draft.index, draft.mark, draft.index === gesture.found ? draft.index : -1);
  else if (gesture?.markAt) change({ selected: gesture.found });
  gesture = null;
}

function cancel() {
  gesture = null;
  if (state.draft) change({ draft: null });
}

listen(['marks', 'picture'], cancel); // a gesture knows its mark by an index
canvas.onpointerdown = start;
canvas.onpointermove = move;
canvas.onpointercancel = cancel;
canvas.onlostpointercapture = end;
canvas.onwheel = (event) => {
  if (!state.picture || !(event.ctrlKey || event.metaKey)) return;
  event.preventDefault();
  zoom(Math.exp(-event.deltaY / 200), placeOf(event));
};
