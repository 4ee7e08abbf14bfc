// Opens a picture: from a file, by dropping or pasting, from the camera, or the example.

import { byId, notify } from './elements.js';
import { change, startWith, state } from './state.js';

const READABLE = /^image\/(png|jpeg|webp|gif|bmp)$/; // by the server, whatever its version
const stage = byId('stage');

/** Shows a picture; one that is too large for the server, or in another format, is written anew. */
export async function open(blob, name, marks = []) {
  const bitmap = await createImageBitmap(blob).catch(() => null);
  if (!bitmap) {
    notify(`${name} cannot be opened as a picture. Choose another, such as a JPEG, PNG or WebP file.`);
    return;
  }
  const { picture_bytes: bytes, picture_pixels: pixels } = state.about.limits;
  const excess = Math.max((bitmap.width * bitmap.height) / pixels, blob.size / bytes);
  const fits = excess <= 1 && READABLE.test(blob.type);
  const sent = fits ? blob : await rewritten(bitmap, excess);
  const size = fits ? [bitmap.width, bitmap.height] : await sizeOf(sent);
  bitmap.close();
  if (state.picture) URL.revokeObjectURL(state.picture.url);
  notify(excess > 1 ? `${name} is too large for the server, so it was reduced to ${size.join(' × ')} pixels.` : '');
  const data = await dataUri(sent);
  change({ picture: { name, url: URL.createObjectURL(sent), data, size } });
  startWith(marks);
}

export async function openExample() {
  const { marks } = state.about.example;
  const response = await fetch('/page/example.png');
  await open(await response.blob(), 'the example picture', marks);
}

function rewritten(bitmap, excess) {
  const factor = Math.min(1, Math.sqrt(0.9 / excess));
  const canvas = new OffscreenCanvas(...[bitmap.width, bitmap.height].map((side) => Math.max(1, Math.floor(side * factor))));
  canvas.getContext('2d').drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  return canvas.convertToBlob(excess > 1 ? { type: 'image/jpeg', quality: 0.9 } : {});
}

async function sizeOf(blob) {
  const bitmap = await createImageBitmap(blob);
  return [bitmap.width, bitmap.height];
}

function dataUri(blob) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(blob);
  });
}

function openFrom(files) {
  const file = [...files].find((item) => item.type.startsWith('image/')) ?? files[0];
  if (file) open(file, file.name || 'the pasted picture');
}

byId('open').addEventListener('click', () => byId('file').click());
byId('file').addEventListener('change', ({ target }) => {
  openFrom(target.files);
  target.value = '';
});
byId('example').addEventListener('click', openExample);
addEventListener('paste', (event) => {
  if (event.clipboardData.files.length) {
    event.preventDefault();
    openFrom(event.clipboardData.files);
  }
});
addEventListener('dragover', (event) => {
  event.preventDefault();
  stage.classList.add('target');
});
addEventListener('dragleave', (event) => {
  if (!event.relatedTarget) stage.classList.remove('target');
});
addEventListener('drop', (event) => {
  event.preventDefault();
  stage.classList.remove('target');
  openFrom(event.dataTransfer.files);
});
