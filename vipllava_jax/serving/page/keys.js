import { announce, onClick, page } from './elements.js';
import { inside, isDrawable, moved, plus, span, stretched } from './geometry.js';
import { GESTURES } from './shapes.js';
import { change, edit, listen, phraseOf, put, redo, state, undo } from './state.js';

const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

function add() {
  const { tool, color, picture, marks } = state;
  const shape = tool === 'select' ? 'rectangle' : tool;
  const parts = GESTURES[shape] === 'point' ? [0.5] : [0.35, 0.65];
  const points = parts.map((part) => inside(picture.size.map((side) => part * side), picture.size));
  put(marks.length, { shape, color, points }, marks.length);
  tell(marks.length, 'was added.');
}

function next() {
  const selected = ((state.selected + 2) % (state.marks.length + 1)) - 1;
  change({ selected });
  tell(selected, 'is selected.');
}

function remove() {
  tell(state.selected, 'was deleted.');
  edit(state.marks.toSpliced(state.selected, 1));
}

function tell(index, text) {
  announce(index < 0 ? 'No mark is selected.' : `Mark ${index + 1}, ${phraseOf(state.marks[index])}, ${text}`);
}

/** Moves or resizes the selected mark; while a key is held, as one step to undo. */
function nudge({ key, shiftKey, repeat }) {
  const { marks, selected, picture } = state;
  const step = Math.max(1, Math.round(Math.max(...picture.size) / 336));
  const by = ARROWS[key].map((part) => part * step);
  const before = marks[selected];
  const [start, end] = span(before.points);
  const mark =
    shiftKey && before.points.length > 1
      ? stretched(before, [start, plus(end, by)], picture.size)
      : moved(before, by, picture.size);
  if (!isDrawable(mark)) return;
  put(selected, mark, selected, repeat);
  tell(selected, `is at ${span(mark.points).join(' to ')}.`);
}

page.canvas.onkeydown = (event) => {
  const { key } = event;
  if (!state.picture || event.ctrlKey || event.metaKey) return;
  const hasMark = state.selected >= 0;
  if (key === 'Enter' && !event.repeat) add();
  else if (key === ' ') next();
  else if (hasMark && key in ARROWS) nudge(event);
  else if (hasMark && (key === 'Delete' || key === 'Backspace')) remove();
  else return;
  event.preventDefault();
};

window.onkeydown = (event) => {
  const key = event.key.toLowerCase();
  if (!(event.ctrlKey || event.metaKey) || event.target.matches('input:not([type=radio]), textarea')) return;
  if (key === 'y' || (key === 'z' && event.shiftKey)) redo();
  else if (key === 'z') undo();
  else return;
  event.preventDefault();
};

onClick({ undo, redo, delete: remove, clear: () => edit([]) });
listen(['marks', 'selected'], () => {
  page.undo.disabled = !state.past.length;
  page.redo.disabled = !state.future.length;
  page.delete.disabled = state.selected < 0;
  page.clear.disabled = !state.marks.length;
  if (document.activeElement.disabled) page.canvas.focus();
});
