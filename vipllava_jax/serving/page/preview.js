// What the model sees: the server draws the marks, a moment after each change.

import { post } from './api.js';
import { byId } from './elements.js';
import { previewRequest } from './requests.js';
import { listen, state } from './state.js';

const DELAY = 300; // milliseconds without another change
let timer = 0;
let sending = null; // the AbortController of the request on its way
let latest = Promise.resolve('');

/** The data URI of the picture as the model sees it now, when it is drawn; '' if it cannot be. */
export const whatTheModelSees = () => latest;

function plan() {
  clearTimeout(timer);
  sending?.abort();
  if (!state.picture || state.phase !== 'ready') return;
  byId('sees').setAttribute('aria-busy', 'true');
  latest = new Promise((resolve) => {
    timer = setTimeout(() => resolve(draw()), DELAY);
  });
}

async function draw() {
  sending = new AbortController();
  try {
    const response = await post('/v1/preview', previewRequest(), sending.signal);
    const { image, warnings } = await response.json();
    show(image, warnings.length ? 'Part of a mark is cut off. To see the whole picture, choose the fit "pad".' : '');
    return image;
  } catch (error) {
    if (error.name !== 'AbortError') show('', error.message);
    return '';
  }
}

function show(image, note) {
  const figure = byId('sees');
  figure.setAttribute('aria-busy', 'false');
  byId('sees-image').hidden = !image;
  if (image) byId('sees-image').src = image;
  byId('sees-note').textContent = note;
}

listen((changed) => {
  if (['marks', 'picture', 'settings', 'phase'].some((name) => changed.has(name))) plan();
});
