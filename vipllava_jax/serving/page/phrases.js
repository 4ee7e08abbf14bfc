// The phrases of the marks, which a click inserts into the question.

import { create, dot, page } from './elements.js';
import { change, listen, phraseOf, state } from './state.js';

const { question } = page;

/** Inserts {mark} or {mark2} where the cursor is, and selects the mark. */
function insert(index) {
  const before = question.value.slice(0, question.selectionStart);
  const text = `${/\S$/.test(before) ? ' ' : ''}{mark${index ? index + 1 : ''}}`;
  question.setRangeText(text, question.selectionStart, question.selectionEnd, 'end');
  question.dispatchEvent(new Event('input'));
  question.focus();
  change({ selected: index });
}

function show() {
  const isChat = state.mode === 'ask';
  const chip = (mark, index) => {
    const label = isChat ? [dot(mark.color), phraseOf(mark)] : ['Insert {mark}'];
    const attributes = { type: 'button', class: 'chip', onclick: () => insert(index) };
    return create('button', attributes, ...label);
  };
  page.phrases.replaceChildren(...state.marks.slice(0, isChat ? state.about.limits.marks : 1).map(chip));
}

listen(['marks', 'mode'], show);
