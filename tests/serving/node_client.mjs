// 30 cases with openai for Node against a server that runs; by hand, because it needs Node 20 and openai from npm:
//   vipllava serve --model demo &
//   (cd "$(mktemp -d)" && npm install openai && cp "$OLDPWD/tests/serving/node_client.mjs" . && node node_client.mjs)
import assert from 'node:assert/strict';
import { deflateSync } from 'node:zlib';
import OpenAI from 'openai';

const baseURL = process.env.OPENAI_BASE_URL ?? 'http://127.0.0.1:8000/v1';
const client = new OpenAI({ baseURL, apiKey: process.env.OPENAI_API_KEY ?? 'none', maxRetries: 0 });
const model = (await client.models.list()).data[0].id;

const crcs = Array.from({ length: 256 }, (_, n) => {
  for (let bit = 0; bit < 8; bit++) n = n & 1 ? 0xedb88320 ^ (n >>> 1) : n >>> 1;
  return n >>> 0;
});
const crc = (data) => ~data.reduce((sum, byte) => crcs[(sum ^ byte) & 255] ^ (sum >>> 8), -1) >>> 0;

function chunk(kind, data) {
  const body = Buffer.concat([Buffer.from(kind), data]);
  const [length, sum] = [Buffer.alloc(4), Buffer.alloc(4)];
  length.writeUInt32BE(data.length);
  sum.writeUInt32BE(crc(body));
  return Buffer.concat([length, body, sum]);
}

// A white picture with a blue square in its middle, as a data URI.
function picture(side = 64) {
  const header = Buffer.alloc(13);
  header.writeUInt32BE(side, 0);
  header.writeUInt32BE(side, 4);
  header.set([8, 2], 8);
  const isMiddle = (place) => place > side / 4 && place < (3 * side) / 4;
  const rows = Array.from({ length: side }, (_, y) => [
    0,
    ...Array.from({ length: side }, (_, x) => (isMiddle(x) && isMiddle(y) ? [0, 0, 255] : [255, 255, 255])).flat(),
  ]);
  const data = deflateSync(Buffer.from(rows.flat()));
  const parts = [chunk('IHDR', header), chunk('IDAT', data), chunk('IEND', Buffer.alloc(0))];
  return `data:image/png;base64,${Buffer.concat([Buffer.from('89504e470d0a1a0a', 'hex'), ...parts]).toString('base64')}`;
}

const url = picture();
const mark = { shape: 'rectangle', box: [0.2, 0.2, 0.8, 0.8], units: 'fractions', color: 'red' };
const image = (...marks) => ({ type: 'image_url', image_url: { url }, visual_prompts: marks });
const user = (text, ...parts) => ({ role: 'user', content: [...parts, { type: 'text', text }] });
const ask = (fields = {}, options) =>
  client.chat.completions.create(
    { model, messages: [user('What is {mark}?', image(mark))], max_completion_tokens: 16, ...fields },
    options,
  );

async function collected(stream) {
  const chunks = [];
  for await (const each of stream) chunks.push(each);
  const text = chunks.map((each) => each.choices[0]?.delta?.content ?? '').join('');
  const reasons = chunks.flatMap((each) => each.choices.map((choice) => choice.finish_reason)).filter(Boolean);
  return { chunks, text, reasons };
}

function fails(kind, promise, check = () => {}) {
  return assert.rejects(promise, (error) => {
    assert(error instanceof kind, `${error.constructor.name}: ${error.message}`);
    check(error);
    return true;
  });
}

const cases = {
  'models are listed': async () => {
    const list = await client.models.list();
    assert.equal(list.data[0].object, 'model');
  },
  'a model is retrieved': async () => assert.equal((await client.models.retrieve(model)).id, model),
  'an unknown model is not found': () => fails(OpenAI.NotFoundError, client.models.retrieve('other')),
  'an answer': async () => {
    const answer = await ask();
    assert.equal(answer.object, 'chat.completion');
    assert.equal(answer.choices[0].message.role, 'assistant');
    assert(answer.choices[0].message.content.length > 0);
  },
  'usage adds up': async () => {
    const { usage } = await ask();
    assert.equal(usage.total_tokens, usage.prompt_tokens + usage.completion_tokens);
  },
  'a message that is a string': async () => {
    const answer = await ask({ messages: [{ role: 'user', content: 'What is a star?' }] });
    assert.equal(typeof answer.choices[0].message.content, 'string');
  },
  'a system message': () => ask({ messages: [{ role: 'system', content: 'Be brief.' }, user('Hello?')] }),
  'turns of a conversation': () =>
    ask({ messages: [user('Hello?'), { role: 'assistant', content: 'Hello.' }, user('And now?')] }),
  'a picture without marks': () => ask({ messages: [user('What is in the picture?', image())] }),
  'a mark as text': () => ask({ messages: [user('What is {mark}?', image('ellipse:0.2,0.2,0.8,0.8:lime'))] }),
  'two marks': () => ask({ messages: [user('Is {mark1} {mark2}?', image(mark, { ...mark, color: 'lime' }))] }),
  'streamed text is the whole text': async () => {
    const whole = (await ask({ temperature: 0 })).choices[0].message.content;
    assert.equal((await collected(await ask({ temperature: 0, stream: true }))).text, whole);
  },
  'a stream ends with one reason': async () => {
    const { reasons } = await collected(await ask({ stream: true }));
    assert.equal(reasons.length, 1);
  },
  'a stream ends with usage': async () => {
    const { chunks } = await collected(await ask({ stream: true, stream_options: { include_usage: true } }));
    assert(chunks.at(-1).usage.completion_tokens > 0);
    assert.equal(chunks.at(-1).choices.length, 0);
  },
  'the helper for streams': async () => {
    const runner = client.chat.completions.stream({ model, messages: [user('Hello?')], max_completion_tokens: 4 });
    assert.equal(typeof (await runner.finalContent()), 'string');
  },
  'a stream is aborted, and the server goes on': async () => {
    const stream = await ask({ stream: true, max_completion_tokens: 64, ignore_eos: true });
    for await (const _ of stream) break;
    await ask();
  },
  'several answers': async () => {
    const answer = await ask({ n: 3, temperature: 1, seed: 1 });
    assert.deepEqual(answer.choices.map((choice) => choice.index), [0, 1, 2]);
  },
  'a seed repeats an answer': async () => {
    const [one, other] = [await ask({ temperature: 1, seed: 7 }), await ask({ temperature: 1, seed: 7 })];
    assert.equal(one.choices[0].message.content, other.choices[0].message.content);
  },
  'a limit of tokens': async () => {
    const answer = await ask({ max_completion_tokens: 2, ignore_eos: true });
    assert.equal(answer.choices[0].finish_reason, 'length');
    assert.equal(answer.usage.completion_tokens, 2);
  },
  'max_tokens is the same limit': async () => {
    const answer = await ask({ max_completion_tokens: undefined, max_tokens: 2, ignore_eos: true });
    assert.equal(answer.usage.completion_tokens, 2);
  },
  'a stop string is left out': async () => {
    const whole = (await ask({ temperature: 0 })).choices[0].message.content;
    const stop = whole.slice(-3);
    assert(!(await ask({ temperature: 0, stop })).choices[0].message.content.includes(stop));
  },
  'log-probabilities': async () => {
    const { content } = (await ask({ logprobs: true, top_logprobs: 2 })).choices[0].logprobs;
    assert(content[0].logprob <= 0);
    assert.equal(content[0].top_logprobs.length, 2);
  },
  'JSON that follows a schema': async () => {
    const schema = { type: 'object', properties: { yes: { type: 'boolean' } }, required: ['yes'] };
    const json_schema = { name: 'answer', schema: { ...schema, additionalProperties: false } };
    const answer = await ask({ response_format: { type: 'json_schema', json_schema }, max_completion_tokens: 64 });
    assert.equal(typeof JSON.parse(answer.choices[0].message.content).yes, 'boolean');
  },
  'one of given answers': async () => {
    const answer = await ask({ structured_outputs: { choice: ['yes', 'no'] } });
    assert(['yes', 'no'].includes(answer.choices[0].message.content));
  },
  'what the model saw': async () => {
    const answer = await ask({ return_image: true });
    assert(answer.choices[0].message.image.startsWith('data:image/png;base64,'));
  },
  'a text completion': async () => {
    const answer = await client.completions.create({ model, prompt: 'A star is', max_tokens: 4 });
    assert.equal(answer.object, 'text_completion');
  },
  'regions of a picture': async () => {
    const body = { model, image: url, regions: [mark, mark], question: 'What is {mark}?', max_tokens: 8 };
    const { data } = await client.post('/regions', { body });
    assert.deepEqual(data.map((entry) => entry.index), [0, 1]);
  },
  'the id of a request is returned': async () => {
    const { request_id } = await ask({}, { headers: { 'x-request-id': 'case-28' } }).withResponse();
    assert.equal(request_id, 'case-28');
  },
  'a wrong type names its field': () =>
    fails(OpenAI.BadRequestError, ask({ temperature: 'hot' }), (error) => assert.equal(error.param, 'temperature')),
  'tools are refused by name': () => {
    const tool = { type: 'function', function: { name: 'f', parameters: {} } };
    return fails(OpenAI.BadRequestError, ask({ tools: [tool] }), (error) => assert.equal(error.param, 'tools'));
  },
};

let failed = 0;
for (const [name, test] of Object.entries(cases)) {
  try {
    await test();
    console.log(`passed: ${name}`);
  } catch (error) {
    failed++;
    console.log(`FAILED: ${name}: ${error.message}`);
  }
}
console.log(`${Object.keys(cases).length - failed} of ${Object.keys(cases).length} cases passed`);
process.exitCode = failed ? 1 : 0;
