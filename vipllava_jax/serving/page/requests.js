// Requests, [path, body], from what the page shows; JSON leaves out what is undefined.

import { regionOf } from './regions.js';
import { page } from './elements.js';
import { state } from './state.js';

/** The settings that are not left to the server, by their names in requests. */
function settings() {
  const fields = [...page['settings-form'].elements].filter(({ name, value }) => name && value);
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

export function previewRequest() {
  const visual_prompts = state.marks.slice(0, state.about.limits.marks).map(regionOf);
  return ['/v1/preview', { image: state.picture.data, visual_prompts, fit: settings().fit }];
}
