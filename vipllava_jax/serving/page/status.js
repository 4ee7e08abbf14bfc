// Follows the server while it loads, drains or is away.

import { get } from './api.js';
import { page } from './elements.js';
import { change, state } from './state.js';

const TEXTS = {
  ready: 'Ready',
  draining: 'The server is shutting down',
  failed: 'The model has failed: restart the server',
  away: 'The server cannot be reached',
  weights: 'Loading the model',
  programs: 'Preparing programs',
};

export async function follow() {
  const { status, stage, done, total } = await get('/ready')
    .then((response) => response.json())
    .catch(() => ({ status: 'away' }));
  const counts = total ? `: ${done} of ${total}` : ' …';
  document.body.dataset.phase = status;
  page['status-text'].textContent = status === 'loading' ? `${TEXTS[stage] ?? TEXTS.weights}${counts}` : TEXTS[status];
  if (status !== state.phase) change({ phase: status });
  setTimeout(follow, status === 'ready' ? 15_000 : 1000);
}
