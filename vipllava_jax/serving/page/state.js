const listeners = {};

export const state = {
  about: null,
  phase: 'loading',
  picture: null, // { name, data: a data URI, size: [width, height] }
  marks: [], // { shape, color, points }: one point, the two corners of a box, or those of a polygon
  past: [], // lists of marks, for undo
  future: [],
  draft: null, // { index, mark }: a mark during a gesture
  selected: -1, // the index of a mark
  tool: 'rectangle', // a shape, or 'select'
  color: 'red',
  mode: 'ask', // or 'regions'
};

/** By lists of marks, which never change: { question, answers }, the complete ones by the index of their mark. */
export const answered = new WeakMap();

/** Calls a function after each change of one of these fields. */
export function listen(names, listener) {
  for (const name of names) (listeners[name] ??= []).push(listener);
}

export function change(fields) {
  Object.assign(state, fields);
  new Set(Object.keys(fields).flatMap((name) => listeners[name] ?? [])).forEach((listener) => listener());
}

/** Replaces the marks unless they are the same; a change that continues the one before it is undone with it. */
export function edit(marks, selected = -1, continues = false) {
  if (JSON.stringify(marks) === JSON.stringify(state.marks)) return change({ selected, draft: null });
  const past = continues ? state.past : [...state.past, state.marks];
  change({ marks, selected, past, future: [], draft: null });
}

export const put = (index, mark, ...rest) => edit(state.marks.toSpliced(index, 1, mark), ...rest);

export const undo = () => go('past', 'future');
export const redo = () => go('future', 'past');

function go(from, to) {
  if (!state[from].length) return;
  const marks = state[from].at(-1);
  change({ marks, [from]: state[from].slice(0, -1), [to]: [...state[to], state.marks], selected: -1, draft: null });
}

export const phraseOf = ({ shape, color }) => `${state.about.prepositions[shape]} the ${color} ${shape}`;

/** A question as the model reads it, with phrases in place of {mark}, {mark2}, … */
export function withPhrases(text) {
  return text.replace(/\{mark(\d*)\}/g, (found, number) => {
    const mark = state.marks[(Number(number) || 1) - 1];
    return mark ? phraseOf(mark) : found;
  });
}
