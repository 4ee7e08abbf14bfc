// Takes a picture with the camera.

import { byId, notify } from './elements.js';
import { open } from './picture.js';

const dialog = byId('camera');
const video = byId('video');

async function start() {
  try {
    video.srcObject = await navigator.mediaDevices.getUserMedia({ video: { facingMode: 'environment' } });
  } catch {
    notify('The camera cannot be used. Allow it in the browser, or open a file instead.');
    return;
  }
  dialog.showModal();
}

async function take() {
  const canvas = new OffscreenCanvas(video.videoWidth, video.videoHeight);
  canvas.getContext('2d').drawImage(video, 0, 0);
  const blob = await canvas.convertToBlob({ type: 'image/jpeg', quality: 0.95 });
  dialog.close();
  open(blob, 'a picture of the camera');
}

byId('camera-open').hidden = !navigator.mediaDevices?.getUserMedia;
byId('camera-open').addEventListener('click', start);
byId('take').addEventListener('click', take);
dialog.addEventListener('close', () => {
  video.srcObject?.getTracks().forEach((track) => track.stop());
  video.srcObject = null;
});
