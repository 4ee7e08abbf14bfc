// The list of marks, with their places as numbers, and the phrases for a question.

import { byId, create } from './elements.js';
import { isLargeEnough, pointsOf } from './geometry.js';
import { removeMark } from './keys.js';
import { change, edit, history, listen, phraseOf, state } from './state.js';

const MOST_SHOWN = 100;
const question = byId('question');

function row(mark, index) {
  const isSelected = index === state.selected;
  const place = create('input', {
    'aria-label': `Place of mark ${index + 1} in pixels`,
    value: pointsOf(mark).flat().join(', '),
    inputmode: 'numeric',
    spellcheck: 'false',
    onchange: (event) => replace(mark, index, event.target),
  });
  const name = create(
    'button',
    { class: 'name', 'aria-pressed': String(isSelected), onclick: () => change({ selected: isSelected ? -1 : index }) },
    dot(mark),
    create('span', {}, `${index + 1}. ${mark.color} ${mark.shape}`),
  );
  const remove = create(
    'button',
    { class: 'quiet', 'aria-label': `Delete mark ${index + 1}`, title: 'Delete', onclick: () => removeMark(index) },
    '×',
  );
  return create('li', { class: isSelected ? 'selected' : '' }, name, place, remove);
}

const dot = (mark) => create('span', { class: `dot ${mark.color}`, 'aria-hidden': 'true' });

/** Reads the numbers of a place; what is not one is told by the field itself. */
function replace(mark, index, input) {
  const numbers = input.value.split(/[\s,;]+/).filter(Boolean).map(Number);
  const changed = withPlace(mark, numbers);
  const isInside = numbers.every((value, n) => value >= 0 && value <= state.picture.size[n % 2]);
  if (changed && isInside && isLargeEnough(changed)) {
    edit(state.marks.with(index, changed), index);
    return;
  }
  const [width, height] = state.picture.size;
  const form = mark.point ? 'x, y' : mark.box ? 'x1, y1, x2, y2' : 'x1, y1, x2, y2, x3, y3, …';
  input.setCustomValidity(`Enter ${form} inside the picture of ${width} × ${height} pixels.`);
  input.reportValidity();
  input.setCustomValidity('');
}

function withPlace(mark, numbers) {
  if (numbers.some(Number.isNaN)) return null;
  if (mark.point) return numbers.length === 2 ? { ...mark, point: numbers } : null;
  if (mark.box) {
    const [x1, y1, x2, y2] = numbers;
    return numbers.length === 4 && x1 < x2 && y1 < y2 ? { ...mark, box: numbers } : null;
  }
  const pairs = Array.from({ length: numbers.length / 2 }, (_, n) => numbers.slice(2 * n, 2 * n + 2));
  return numbers.length >= 6 && numbers.length % 2 === 0 ? { ...mark, polygon: pairs } : null;
}

/** Inserts {mark} or {mark2} in the question, where the cursor is. */
function insert(index) {
  const text = index && state.mode === 'ask' ? `{mark${index + 1}}` : '{mark}';
  const before = question.value.slice(0, question.selectionStart);
  const space = before && !/\s$/.test(before) ? ' ' : '';
  question.setRangeText(space + text, question.selectionStart, question.selectionEnd, 'end');
  question.dispatchEvent(new Event('input'));
  question.focus();
}

function phrase(mark, index) {
  const label = state.mode === 'ask' ? phraseOf(mark) : 'the phrase of each mark';
  const attributes = { class: 'chip', title: 'Insert into the question', onclick: () => insert(index) };
  return create('button', attributes, ...(state.mode === 'ask' ? [dot(mark)] : []), label);
}

function show() {
  const { marks } = state;
  byId('marks').replaceChildren(...marks.slice(0, MOST_SHOWN).map(row));
  byId('marks-more').textContent = marks.length > MOST_SHOWN ? `and ${marks.length - MOST_SHOWN} more` : '';
  byId('no-marks').hidden = marks.length > 0;
  const offered = state.mode === 'ask' ? marks.slice(0, state.about.limits.marks) : marks.slice(0, 1);
  byId('phrases').replaceChildren(...offered.map(phrase));
  byId('undo').disabled = !history.canUndo;
  byId('redo').disabled = !history.canRedo;
  byId('clear').disabled = !marks.length;
}

listen((changed) => {
  if (state.about && ['marks', 'selected', 'mode', 'about'].some((name) => changed.has(name))) {
    const focused = document.activeElement?.closest('#marks li');
    const place = focused && [...focused.parentNode.children].indexOf(focused);
    const kind = document.activeElement?.className;
    show();
    if (focused) byId('marks').children[place]?.querySelector(kind ? `.${kind}` : 'input')?.focus();
  }
});
