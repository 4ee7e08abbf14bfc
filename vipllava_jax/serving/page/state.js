// What the page shows: one object, whose changes are told to those who listen.

import { createHistory } from './history.js';

const listeners = [];
export const history = createHistory([]);
export const state = {
  about: null, // what the server offers
  phase: 'loading', // of the server: loading, ready, draining, failed, or away
  picture: null, // { name, url, data, size }: data is a data URI, size [width, height]
  selected: -1, // the index of a mark
  tool: 'rectangle', // a shape, or 'select'
  color: 'red',
  mode: 'ask', // or 'regions'
  answers: [], // to regions, by the index of their marks
  get marks() {
    return history.present;
  },
};

/** Calls a function after each change, with the names of what has changed. */
export function listen(listener) {
  listeners.push(listener);
}

/** Changes some fields of the state. */
export function change(fields) {
  Object.assign(state, fields);
  tell(...Object.keys(fields));
}

/** Replaces the marks; `key` joins a change with the one before it if both have the same. */
export function edit(marks, selected = state.selected, key = '') {
  history.add(marks, key);
  settle(selected);
}

export function undo() {
  if (history.undo()) settle(-1);
}

export function redo() {
  if (history.redo()) settle(-1);
}

/** Other marks, on a new picture, before which there is nothing to undo. */
export function startWith(marks) {
  history.reset(marks);
  settle(-1);
}

/** The phrase of a mark in a question: 'within the red rectangle'. */
export function phraseOf(mark) {
  const color = state.about.colors[mark.color] ? `${mark.color} ` : '';
  return `${state.about.prepositions[mark.shape]} the ${color}${mark.shape}`;
}

/** A question with the phrases of marks in place of {mark}, {mark2}, …, as the model reads it. */
export function withPhrases(text) {
  return text.replace(/\{mark(\d*)\}/g, (found, number) => {
    const mark = state.marks[(Number(number) || 1) - 1];
    return mark ? phraseOf(mark) : found;
  });
}

function settle(selected) {
  Object.assign(state, { selected: Math.min(selected, state.marks.length - 1), answers: [] });
  tell('marks', 'selected', 'answers');
}

function tell(...names) {
  listeners.forEach((listener) => listener(new Set(names)));
}
