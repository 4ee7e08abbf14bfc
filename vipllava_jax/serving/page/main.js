// Connects the parts of the page, and begins with an example.

import './camera.js';
import './gestures.js';
import { get } from './api.js';
import { isAsking } from './asking.js';
import { fit, zoom } from './canvas.js';
import { ask, nextRequest, startAnew } from './chat.js';
import { byId, create, notify } from './elements.js';
import { addInTheMiddle } from './keys.js';
import './marks.js';
import { openExample } from './picture.js';
import { askAll, nextRegions } from './regions.js';
import { offer } from './settings.js';
import { GESTURES, HINTS } from './shapes.js';
import { showSnippet } from './snippets.js';
import { change, edit, listen, redo, state, undo } from './state.js';
import { startFollowing } from './status.js';

const question = byId('question');
const onClick = (id, work) => byId(id).addEventListener('click', work);

function choices() {
  for (const name of Object.keys(state.about.colors)) {
    const input = create('input', { type: 'radio', name: 'color', value: name, checked: name === state.color });
    const dot = create('span', { class: `dot ${name}`, title: name });
    byId('colors').append(create('label', {}, input, dot, create('span', { class: 'unseen' }, name)));
  }
}

function choose({ target }) {
  if (target.name === 'color' && state.selected >= 0) {
    edit(state.marks.with(state.selected, { ...state.marks[state.selected], color: target.value }));
  }
  change({ [target.name]: target.value, ...(target.name === 'tool' && { selected: -1 }) });
}

async function send(event) {
  event?.preventDefault();
  const text = question.value.trim();
  if (!text || isAsking() || byId('ask').disabled) return;
  notify();
  if (state.mode === 'regions') await askAll(text);
  else {
    question.value = '';
    question.dispatchEvent(new Event('input'));
    if (!(await ask(text)) && !question.value) question.value = text;
  }
}

function showMode() {
  for (const part of document.querySelectorAll('[data-mode]')) part.hidden = part.dataset.mode !== state.mode;
  byId('question-label').textContent = state.mode === 'ask' ? 'Question' : 'Question about each mark';
}

async function begin() {
  startFollowing();
  const [about] = await get('/page/about.json');
  change({ about });
  byId('model').textContent = about.model;
  choices();
  offer(about);
  question.value = about.example.question;
  await openExample();
  question.dispatchEvent(new Event('input'));
}

for (const id of ['tools', 'colors', 'modes']) byId(id).addEventListener('change', choose);
for (const [id, work] of Object.entries({ undo, redo, 'zoom-fit': fit, add: addInTheMiddle, anew: startAnew })) onClick(id, work);
onClick('zoom-in', () => zoom(1.5));
onClick('zoom-out', () => zoom(1 / 1.5));
onClick('clear', () => edit([], -1));
onClick('dismiss', () => notify());
onClick('code-open', () => {
  const text = question.value.trim() || state.about.example.question;
  const path = state.mode === 'ask' ? '/v1/chat/completions' : '/v1/regions';
  showSnippet({ path, body: state.mode === 'ask' ? nextRequest(text) : nextRegions(text) });
});
byId('composer').addEventListener('submit', send);
question.addEventListener('keydown', (event) => {
  if (event.key === 'Enter' && !event.shiftKey && !event.isComposing) send(event);
});
listen((changed) => {
  if (changed.has('mode')) showMode();
  if (changed.has('tool')) byId('hint').textContent = HINTS[GESTURES[state.tool] ?? 'select'];
});
showMode();
begin().catch((error) => notify(`${error.message ?? error} Reload the page to try again.`));
