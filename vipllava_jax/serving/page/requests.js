// Requests, [path, body]; undefined is left out.

import { regionOf } from './regions.js';
import { page } from './elements.js';
import { state } from './state.js';

/** The settings that are not left to the server, by their names in requests. */
function settings() {
  const fields = [...page.settings.querySelectorAll('[name]')].filter(({ value }) => value);
  return Object.fromEntries(fields.map(({ name, type, value }) => [name, type === 'number' ? Number(value) : value]));
}

/** Turns are { role, content }; the first carries the picture. */
export function chatRequest(turns) {
  const { fit, ...generation } = settings();
  const image_url = { url: state.picture.data };
  const picture = { type: 'image_url', image_url, visual_prompts: state.marks.map(regionOf), fit };
  const [{ role, content }, ...later] = turns;
  const messages = [{ role, content: [picture, { type: 'text', text: content }] }, ...later];
  return ['/v1/chat/completions', { model: state.about.model, messages, ...generation }];
}

export function regionsRequest(question) {
  const [image, regions] = [state.picture.data, state.marks.map(regionOf)];
  return ['/v1/regions', { model: state.about.model, image, regions, question, ...settings() }];
}

/** Marks that are asked about one by one are seen one by one. */
export function previewRequest() {
  const { marks, selected, mode, about, picture } = state;
  const shown = marks.filter((_, n) => (mode === 'ask' ? n < about.limits.marks : n === Math.max(selected, 0)));
  return ['/v1/preview', { image: picture.data, visual_prompts: shown.map(regionOf), fit: settings().fit }];
}
