// Asks a server with openai for Node: npm install openai; vipllava serve --model demo; node client.mjs PICTURE
import { readFileSync } from 'node:fs';
import OpenAI from 'openai';

const client = new OpenAI({ baseURL: 'http://127.0.0.1:8000/v1', apiKey: 'none' }); // the key, if the server has one
const model = (await client.models.list()).data[0].id;
const url = `data:image/png;base64,${readFileSync(process.argv[2]).toString('base64')}`;
const mark = { shape: 'rectangle', box: [0.1, 0.1, 0.6, 0.6], units: 'fractions', color: 'red' };
const messages = [
  {
    role: 'user',
    content: [
      { type: 'image_url', image_url: { url }, visual_prompts: [mark] },
      { type: 'text', text: 'What is {mark}?' },
    ],
  },
];

const answer = await client.chat.completions.create({ model, messages, max_completion_tokens: 32 });
console.log(answer.choices[0].message.content, answer.usage);

const stream = await client.chat.completions.create({ model, messages, stream: true });
for await (const chunk of stream) {
  process.stdout.write(chunk.choices[0]?.delta?.content ?? '');
}
console.log();

const regions = await client.post('/regions', {
  body: { model, image: url, regions: [mark, { ...mark, shape: 'ellipse' }], question: 'What is {mark}?' },
});
for (const { index, answer } of regions.data) {
  console.log(index, answer);
}
