// One request at a time, with its progress: waiting, answering, stopped or failed.

import { announce, byId } from './elements.js';
import { showSettings } from './settings.js';
import { listen, state } from './state.js';

const LONG = 6; // seconds after which the queue must be long
let sending = null;

/**
 * Runs `work(signal)` while the buttons show that it runs; `waiting(text)` is told what to say until
 * `began()` is called. Returns the error, if there was one; none if the user stopped it.
 */
export async function run(work, waiting) {
  sending = new AbortController();
  const begin = Date.now();
  const tick = () => {
    const seconds = Math.round((Date.now() - begin) / 1000);
    if (seconds < 1) waiting('Waiting for the answer …');
    else if (seconds < LONG) waiting(`Waiting for the answer … ${seconds} s`);
    else waiting(`Others are asking as well: waiting for a place in the queue … ${seconds} s`);
  };
  tick();
  const timer = setInterval(tick, 1000);
  announce('The question was sent.');
  settle();
  try {
    await work(sending.signal, () => clearInterval(timer));
    return null;
  } catch (error) {
    if (error.name === 'AbortError') return null;
    if (error.status === 401) showSettings();
    announce(error.message);
    return error;
  } finally {
    clearInterval(timer);
    sending = null;
    settle();
  }
}

export const isAsking = () => sending !== null;

function settle() {
  byId('stop').hidden = !sending;
  byId('ask').hidden = Boolean(sending);
  byId('ask').disabled = state.phase !== 'ready' || !state.picture || !byId('question').value.trim();
  byId('ask').textContent = state.mode === 'ask' ? 'Ask' : `Ask about ${state.marks.length} marks`;
}

byId('stop').addEventListener('click', () => sending?.abort());
byId('question').addEventListener('input', settle);
listen(settle);
