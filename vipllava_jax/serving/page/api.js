const KEY = 'vipllava-api-key';
export const apiKey = () => sessionStorage.getItem(KEY) ?? '';
export const setApiKey = (key) => sessionStorage.setItem(KEY, key);

/** Requests a path; throws an Error that says what to do if the server cannot be reached. */
export function get(path, options) {
  return fetch(path, { cache: 'no-store', ...options }).catch((error) => {
    if (error.name === 'AbortError') throw error;
    throw new Error('The server cannot be reached. Check that it is running, then try again.');
  });
}

/** Sends the request [path, body]; throws an Error, with the status, unless the server accepts it. */
export async function post([path, body], signal) {
  const headers = { 'content-type': 'application/json', ...(apiKey() && { authorization: `Bearer ${apiKey()}` }) };
  const response = await get(path, { method: 'POST', headers, body: JSON.stringify(body), signal });
  const { ok, status } = response;
  if (ok) return response;
  const { error } = await response.json().catch(() => ({}));
  const advice = {
    401: 'The server wants an API key: enter it in the settings.',
    429: `The server is busy: its queue is full. Try again in ${response.headers.get('retry-after')} s.`,
  };
  const message = advice[status] ?? error?.message ?? `The server answered with status ${status}.`;
  throw Object.assign(new Error(message), { status });
}

/** Yields the events of an answer as they arrive. */
export async function* events([path, body], signal) {
  const response = await post([path, { ...body, stream: true }], signal);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = '';
  for (;;) {
    const { value, done } = await reader.read().catch((error) => {
      if (signal.aborted) throw error;
      return { done: true };
    });
    if (done) throw new Error('The answer ended early: the connection was lost. Try again.');
    const parts = (rest + value).split('\n\n');
    rest = parts.pop();
    for (const part of parts.filter((line) => line.startsWith('data: '))) {
      if (part === 'data: [DONE]') return;
      const event = JSON.parse(part.slice(6));
      if (event.error) throw new Error(event.error.message);
      yield event;
    }
  }
}
