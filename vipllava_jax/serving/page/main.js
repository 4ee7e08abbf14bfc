import './gestures.js';
import './keys.js';
import './picture.js';
import './preview.js';
import { get } from './api.js';
import { requestFor } from './conversation.js';
import { create, createSvg, dot, notify, onClick, page } from './elements.js';
import { GESTURES, icon } from './shapes.js';
import { showSnippet } from './snippets.js';
import { change, listen, put, state } from './state.js';

const PHASES = {
  ready: 'Ready',
  draining: 'The server is shutting down',
  failed: 'The model has failed: restart the server',
  away: 'The server cannot be reached',
};

function choice(name, value, picture) {
  const input = create('input', { type: 'radio', name, value, 'aria-label': value });
  input.checked = state[name] === value;
  return create('label', { title: value }, input, picture);
}

function showChoices() {
  const select = createSvg('svg', { viewBox: '0 0 20 20' }, createSvg('path', { d: 'm5 3 10 7-5 1-2 5z' }));
  const shapes = Object.keys(GESTURES).map((shape) => choice('tool', shape, icon(shape)));
  const colors = Object.keys(state.about.colors).map((color) => choice('color', color, dot(color)));
  page.tools.append(choice('tool', 'select', select), ...shapes);
  page.colors.append(...colors);
  page.model.textContent = state.about.model;
}

function choose({ target: { name, value } }) {
  if (!name) return;
  const { marks, selected } = state;
  if (name === 'color' && selected >= 0) put(selected, { ...marks[selected], color: value }, selected);
  change({ [name]: value, ...(name === 'tool' && { selected: -1 }) });
}

async function follow() {
  const { status, stage, done, total } = await get('/ready')
    .then((response) => response.json())
    .catch(() => ({ status: 'away' }));
  const step = `${stage === 'programs' ? 'Preparing' : 'Loading the model'}${total ? `: ${done} of ${total}` : ' …'}`;
  document.body.dataset.phase = status;
  page['status-text'].textContent = PHASES[status] ?? step;
  if (status !== state.phase) change({ phase: status });
  setTimeout(follow, status === 'ready' ? 15_000 : 1000);
}

function begin() {
  get('/page/about.json')
    .then((response) => response.json())
    .then((about) => change({ about }), () => setTimeout(begin, 1000));
}

for (const id of ['tools', 'colors', 'modes']) page[id].onclick = choose;
onClick({
  dismiss: notify,
  'code-open': () => showSnippet(requestFor(page.question.value.trim() || state.about.example.question)),
});
listen(['about'], showChoices);
listen(['mode', 'picture'], () => (page.files.hidden = state.mode === 'ask' || !state.picture));
listen(['picture'], () => (page['code-open'].disabled = false));
follow();
begin();
