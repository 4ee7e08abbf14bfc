// Follows the server while it loads, drains or is away.

import { get } from './api.js';
import { byId } from './elements.js';
import { change, listen, state } from './state.js';

const OFTEN = 1000; // milliseconds between questions while the server is not ready
const SELDOM = 15_000;
const STAGES = { weights: 'Loading the model', programs: 'Preparing programs' };
const TEXTS = {
  ready: 'Ready',
  draining: 'The server is shutting down',
  failed: 'The model has failed: restart the server',
  away: 'The server cannot be reached',
};

async function follow() {
  const [body] = await get('/ready').catch(() => [{ status: 'away' }]);
  if (body.status !== state.phase) change({ phase: body.status });
  show(body);
  setTimeout(follow, body.status === 'ready' ? SELDOM : OFTEN);
}

function show({ status, stage, done, total }) {
  const counts = total ? `: ${done} of ${total}` : ' …';
  const text = TEXTS[status] ?? `${STAGES[stage] ?? STAGES.weights}${counts}`;
  const progress = byId('progress');
  progress.hidden = status !== 'loading';
  if (total) progress.value = done / total;
  else progress.removeAttribute('value');
  byId('status').dataset.phase = status;
  if (byId('status-text').textContent !== text) byId('status-text').textContent = text;
}

export function startFollowing() {
  show({ status: 'loading' });
  follow();
}

listen((changed) => {
  if (changed.has('phase')) document.body.dataset.phase = state.phase;
});
