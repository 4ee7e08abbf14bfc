// Requests to the server, with errors that say what to do.

const KEY = 'vipllava-api-key';

export class ApiError extends Error {
  constructor(message, status = 0, code = '') {
    super(message);
    Object.assign(this, { status, code });
  }
}

export const apiKey = () => sessionStorage.getItem(KEY) ?? '';
export const setApiKey = (key) => (key ? sessionStorage.setItem(KEY, key) : sessionStorage.removeItem(KEY));

/** The JSON at a path, and the status. */
export async function get(path) {
  const response = await reach(path, {});
  return [await response.json(), response.status];
}

/** Sends JSON; raises ApiError unless the server accepts it. */
export async function post(path, body, signal) {
  const headers = { 'content-type': 'application/json' };
  if (apiKey()) headers.authorization = `Bearer ${apiKey()}`;
  const response = await reach(path, { method: 'POST', headers, body: JSON.stringify(body), signal });
  if (!response.ok) throw await errorOf(response);
  return response;
}

/** Sends JSON, and yields the events of the answer. */
export async function* events(path, body, signal) {
  const response = await post(path, body, signal);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = '';
  for (;;) {
    const { value, done } = await reader.read();
    if (done) throw new ApiError('The answer ended early: the connection was lost. Try again.');
    const parts = (rest + value).split('\n\n');
    rest = parts.pop();
    for (const part of parts.filter((line) => line.startsWith('data: '))) {
      if (part === 'data: [DONE]') return;
      const event = JSON.parse(part.slice(6));
      if (event.error) throw new ApiError(event.error.message, 0, event.error.code);
      yield event;
    }
  }
}

async function reach(path, options) {
  try {
    return await fetch(path, { cache: 'no-store', ...options });
  } catch (error) {
    if (error.name === 'AbortError') throw error;
    throw new ApiError('The server cannot be reached. Check that it is running, then try again.');
  }
}

async function errorOf(response) {
  const { message, code } = (await response.json().catch(() => ({}))).error ?? {};
  const seconds = response.headers.get('retry-after') ?? 'a few';
  const advice = {
    401: 'The server wants an API key, or does not know this one. Enter it in the settings.',
    413: 'The picture is too large for the server. Make it smaller, and open it again.',
    429: `The server is busy: its queue is full. Try again in ${seconds} seconds.`,
    503: `The server does not take questions now: ${message}.`,
  };
  const text = advice[response.status] ?? message ?? `The server answered with status ${response.status}.`;
  return new ApiError(text, response.status, code);
}
