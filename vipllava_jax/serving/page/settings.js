// What is empty in the dialog is as the server has it.

import { apiKey, setApiKey } from './api.js';
import { onClick, page } from './elements.js';
import { change, listen, state } from './state.js';

export function showSettings() {
  page.key.value = apiKey();
  page.settings.showModal();
}

function choices(id, usual, names) {
  page[id].append(new Option(`default (${usual})`, ''), ...names.map((name) => new Option(name)));
}

listen(['about'], () => {
  const { template, templates, fit, fits, needs_key: needsKey } = state.about;
  choices('template', template, templates);
  choices('fit', fit ?? 'as the model was trained', fits);
  page['key-part'].hidden = !needsKey;
  if (needsKey && !apiKey()) showSettings();
});
onClick({ 'settings-open': showSettings });
page.settings.onclose = () => {
  setApiKey(page.key.value.trim());
  change({ settings: true });
};
