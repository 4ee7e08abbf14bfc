// Drawing and changing marks by the keyboard.

import { announce, byId } from './elements.js';
import { boundsOf, inside, isLargeEnough, moved, stretched } from './geometry.js';
import { GESTURES } from './shapes.js';
import { change, edit, phraseOf, redo, state, undo } from './state.js';

const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

/** Adds a mark of the current shape in the middle of the picture. */
export function addInTheMiddle() {
  const [width, height] = state.picture.size;
  const shape = state.tool === 'select' ? 'rectangle' : state.tool;
  const box = [0.35 * width, 0.35 * height, 0.65 * width, 0.65 * height].map(Math.round);
  const place = GESTURES[shape] === 'point' ? { point: inside([width / 2, height / 2], [width, height]) } : { box };
  const mark = { shape, ...place, color: state.color };
  edit([...state.marks, mark], state.marks.length);
  announce(`${phraseOf(mark)} was added. Arrow keys move it; with Shift they change its size.`);
}

export function removeMark(index) {
  const phrase = phraseOf(state.marks[index]);
  edit(state.marks.toSpliced(index, 1), -1);
  announce(`The mark ${phrase} was deleted.`);
}

function nudge([dx, dy], resizes, isLarge) {
  const { marks, selected, picture } = state;
  const step = Math.max(1, Math.round(Math.max(...picture.size) / (isLarge ? 34 : 336)));
  const [x1, y1, x2, y2] = boundsOf(marks[selected]);
  const mark = resizes
    ? stretched(marks[selected], [x1, y1, x2 + dx * step, y2 + dy * step], picture.size)
    : moved(marks[selected], [dx * step, dy * step], picture.size);
  if (isLargeEnough(mark)) edit(marks.with(selected, mark), selected, `keys ${selected}`);
}

byId('canvas').addEventListener('keydown', (event) => {
  if (!state.picture || event.ctrlKey || event.metaKey) return;
  const hasMark = state.selected >= 0;
  if (event.key in ARROWS && hasMark) nudge(ARROWS[event.key], event.shiftKey, event.altKey);
  else if (event.key === 'Enter') addInTheMiddle();
  else if (hasMark && (event.key === 'Delete' || event.key === 'Backspace')) removeMark(state.selected);
  else if (event.key === 'Escape') change({ selected: -1 });
  else return;
  event.preventDefault();
});

addEventListener('keydown', (event) => {
  if (!(event.ctrlKey || event.metaKey) || event.altKey) return;
  if (event.target.matches('input:not([type=radio]), textarea')) return;
  const key = event.key.toLowerCase();
  if (key === 'z' && !event.shiftKey) undo();
  else if (key === 'y' || key === 'z') redo();
  else return;
  event.preventDefault();
});
