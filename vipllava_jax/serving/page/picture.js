// Opens a picture: from a file, by dropping or pasting, from the camera, or the example.

import { markOf } from './regions.js';
import { get } from './api.js';
import { notify, onClick, onFile, page } from './elements.js';
import { change, listen, state } from './state.js';

const { camera, video } = page;
const READABLE = /^image\/(png|jpeg|webp|gif|bmp)$/; // by the server, whatever its version

/** Shows a picture; one in a format that the server may not read is written anew. */
async function open(blob, name = blob.name || 'the pasted picture', marks = []) {
  const bitmap = await createImageBitmap(blob).catch(() => null);
  if (!bitmap) {
    return notify(`${name} cannot be opened as a picture. Choose another, such as a JPEG, PNG or WebP file.`);
  }
  const size = [bitmap.width, bitmap.height];
  const data = await dataUri(READABLE.test(blob.type) ? blob : await written(bitmap, size));
  notify();
  change({ picture: { name, data, size }, marks, past: [], future: [], selected: -1, answers: [] });
}

function openExample() {
  get('/page/example.png')
    .then((response) => response.blob())
    .then((blob) => open(blob, 'the example picture', state.about.example.marks.map(markOf)))
    .catch((error) => notify(error.message));
}

function written(image, size) {
  const canvas = new OffscreenCanvas(...size);
  canvas.getContext('2d').drawImage(image, 0, 0, ...size);
  return canvas.convertToBlob({ type: 'image/webp', quality: 0.95 });
}

function dataUri(blob) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(blob);
  });
}

async function openCamera() {
  try {
    video.srcObject = await navigator.mediaDevices.getUserMedia({ video: { facingMode: 'environment' } });
    camera.showModal();
  } catch {
    notify('The camera cannot be used. Allow it in the browser, or open a file instead.');
  }
}

async function take() {
  const picture = await written(video, [video.videoWidth, video.videoHeight]);
  camera.close();
  open(picture, 'a picture of the camera');
}

/** Opens the picture that was pasted or dropped, if there is one. */
function openFrom(event, { files }) {
  if (!files.length) return;
  event.preventDefault();
  open(files[0]);
}

onFile('file', open);
onClick({ example: openExample, 'camera-open': openCamera, take });
listen(['about'], openExample);
addEventListener('paste', (event) => openFrom(event, event.clipboardData));
addEventListener('dragover', (event) => event.preventDefault());
addEventListener('drop', (event) => openFrom(event, event.dataTransfer));
camera.addEventListener('close', () => {
  video.srcObject.getTracks().forEach((track) => track.stop());
  video.srcObject = null;
});
