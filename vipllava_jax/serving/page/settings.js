// How answers are generated, and the API key; what is empty is as the server has it.

import { apiKey, setApiKey } from './api.js';
import { byId, create } from './elements.js';
import { change, state } from './state.js';

export const settings = { temperature: null, length: null, template: '', fit: '' };
const dialog = byId('settings');

/** Fills the choices that the server offers. */
export function offer(about) {
  for (const [id, names, usual] of [
    ['template', about.templates, about.template],
    ['fit', about.fits, about.fit ?? 'as the model was trained'],
  ]) {
    byId(id).replaceChildren(
      create('option', { value: '' }, `default (${usual})`),
      ...names.map((name) => create('option', { value: name }, name)),
    );
  }
  byId('key-part').hidden = !about.needs_key;
  if (about.needs_key && !apiKey()) showSettings();
}

export function showSettings() {
  byId('key').value = apiKey();
  dialog.showModal();
}

function read() {
  const number = (id) => (byId(id).value === '' ? null : Number(byId(id).value));
  Object.assign(settings, {
    temperature: number('temperature'),
    length: number('length'),
    template: byId('template').value,
    fit: byId('fit').value,
  });
  setApiKey(byId('key').value.trim());
  change({ settings, phase: state.phase });
}

byId('settings-open').addEventListener('click', showSettings);
dialog.addEventListener('close', read);
