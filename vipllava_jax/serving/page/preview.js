// What the model sees, drawn by the server.

import { post } from './api.js';
import { page } from './elements.js';
import { previewRequest } from './requests.js';
import { listen, state } from './state.js';

const DELAY = 300; // milliseconds without another change
let sending = null; // the AbortController of the latest request

async function renew() {
  sending?.abort();
  page.sees.ariaBusy = true;
  if (!state.picture || state.phase !== 'ready') return show('', '');
  const { signal } = (sending = new AbortController());
  await new Promise((resolve) => setTimeout(resolve, DELAY));
  try {
    if (signal.aborted) return;
    const response = await post(previewRequest(), signal);
    const { image, warnings } = await response.json();
    show(image, warnings.length ? 'Part of a mark is cut off: the fit "pad" keeps it.' : '');
  } catch (error) {
    if (error.status === 429) setTimeout(() => signal.aborted || renew(), 2000);
    else if (error.name !== 'AbortError') show('', error.message);
  }
}

function show(image, note) {
  page.sees.ariaBusy = false;
  page['sees-image'].hidden = !image;
  if (image) page['sees-image'].src = image;
  page['sees-note'].textContent = note;
}

listen(['picture'], () => show('', ''));
listen(['marks', 'picture', 'settings', 'phase', 'mode'], renew);
listen(['selected'], () => state.mode === 'ask' || renew());
