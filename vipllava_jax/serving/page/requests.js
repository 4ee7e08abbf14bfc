// The bodies of requests, from what the page shows.

import { settings } from './settings.js';
import { state } from './state.js';

/** The marks as the server takes them; coordinates of a small mark could be read as fractions. */
export const marksToSend = () => state.marks.map((mark) => ({ ...mark, units: 'pixels' }));

/** A question after earlier turns, [{ role, content }], of which the first carries the picture. */
export function chatRequest(turns) {
  const picture = {
    type: 'image_url',
    image_url: { url: state.picture.data },
    visual_prompts: marksToSend(),
    ...(settings.fit && { fit: settings.fit }),
  };
  const messages = turns.map(({ role, content }, n) => ({
    role,
    content: n ? content : [picture, { type: 'text', text: content }],
  }));
  return { model: state.about.model, messages, ...generation() };
}

/** One question about each mark. */
export function regionsRequest(question, together) {
  return {
    model: state.about.model,
    image: state.picture.data,
    regions: marksToSend(),
    question,
    mode: together ? 'together' : 'separate',
    ...(settings.fit && { fit: settings.fit }),
    ...generation(),
  };
}

export function previewRequest() {
  return {
    image: state.picture.data,
    visual_prompts: marksToSend().slice(0, state.about.limits.marks),
    ...(settings.fit && { fit: settings.fit }),
  };
}

function generation() {
  return {
    ...(settings.temperature !== null && { temperature: settings.temperature }),
    ...(settings.length !== null && { max_tokens: settings.length }),
    ...(settings.template && { template: settings.template }),
  };
}
