// The worker: it owns the digits and trains, so that the page stays free. The page sends { job, ... }, one at a time
// but for "stop" and "pause"; answers go back with the number of the job.
"use strict";

const BATCH = 64, READ_AT_ONCE = 100;
let digits, network, job = 0, paused = null;

// Lets messages in: a "stop" is heard between two steps.
const door = new MessageChannel(), waiting = [];
door.port1.onmessage = () => waiting.shift()();
async function breathe(mine) {
  await new Promise(resolve => { waiting.push(resolve); door.port2.postMessage(0); });
  if (paused) await paused.promise;
  return mine === job;
}

// The engine takes pixels in fours.
function fillUp(places, ink) {
  while (places.length % 4) {
    places.push(0);
    ink.push(0);
  }
}

// Labels, then pixels of two bits, four a byte. Only pixels with ink are kept.
async function unpack({ text, train, test, pixels, low, high }) {
  const packed = Uint8Array.from(atob(text), letter => letter.charCodeAt(0));
  const whole = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
  const bytes = new Uint8Array(await new Response(whole).arrayBuffer());
  const count = train + test, starts = new Int32Array(count + 1), places = [], ink = [];
  for (let i = 0, at = 0; i < count; i++) {
    for (let p = 0; p < pixels; p++, at++) {
      const level = (bytes[count + (at >> 2)] >> (2 * (at & 3))) & 3;
      if (level) {
        places.push(p);
        ink.push((high - low) * level / 3);
      }
    }
    fillUp(places, ink);
    starts[i + 1] = places.length;
  }
  return {
    starts, places: Uint16Array.from(places), ink: Float32Array.from(ink), labels: bytes.slice(0, count),
    blank: low, span: high - low, train, test, pixels,
  };
}

const newMLP = () => new MLP(digits.pixels, 200, 10, READ_AT_ONCE);

function untrained({ family, d, seed, norm = 1, optimiser = "adam" }) {
  const net = newMLP(), theta0 = net.start(dice(seed, PURPOSE.theta0));
  const P = scaled(DRAW[family](net.D, d, dice(seed, PURPOSE.P)), norm);
  return training(net, digits, theta0, P, optimiser);
}

// Reads the digits that no network is trained on.
async function test(net, theta, mine) {
  const { train, test } = digits, guesses = [];
  let loss = 0, right = 0;
  for (let from = train; from < train + test; from += READ_AT_ONCE) {
    const rows = Int32Array.from({ length: Math.min(READ_AT_ONCE, train + test - from) }, (_, i) => from + i);
    const found = net.forward(theta, digits, rows);
    loss += found.loss;
    right += found.right;
    for (let r = 0; r < rows.length && guesses.length < 16; r++) {
      const p = net.p.subarray(10 * r, 10 * r + 10);
      guesses.push(p.indexOf(Math.max(...p)));
    }
    if (!await breathe(mine)) return null;
  }
  return { accuracy: right / test, loss: loss / test, guesses };
}

// What moved: theta - theta0 of the first hidden units, each as an image.
function moved({ net, theta, theta0 }, units = 8) {
  return Array.from({ length: units }, (_, u) =>
    Float32Array.from({ length: net.pixels }, (_, p) => theta[p * net.hidden + u] - theta0[p * net.hidden + u]));
}

const JOBS = {
  async open({ data }) {
    digits = await unpack(data);
    const shown = Array.from({ length: 16 }, (_, i) => {
      const image = new Float32Array(digits.pixels), row = digits.train + i;
      for (let e = digits.starts[row]; e < digits.starts[row + 1]; e++) image[digits.places[e]] += digits.ink[e] / digits.span;
      return { image, label: digits.labels[row] };
    });
    return { shown };
  },

  // Trains; tells the page about it twice an epoch. The rate falls to 0, and a run whose loss runs away ends early.
  async train({ spec, mine, tell }) {
    const run = network = untrained(spec), next = dice(spec.seed, PURPOSE.batches);
    const perEpoch = Math.floor(digits.train / BATCH), steps = spec.epochs * perEpoch;
    const every = Math.ceil(perEpoch / 2);
    let order, sum = 0, count = 0, last = { accuracy: null };
    const started = performance.now();
    for (let step = 0; step <= steps; step++) {
      if (step % every === 0 || step === steps) {
        const read = await test(run.net, run.theta, mine);
        if (!read) return { ...last, ended: "stopped" };
        const { guesses, ...rest } = read;
        last = { ...rest, epoch: step / perEpoch, step, trainLoss: count ? sum / count : null };
        tell({ ...last, guesses, moved: moved(run) });
        sum = count = 0;
        if (step === steps) break;
      }
      if (step % perEpoch === 0) order = shuffled(digits.train, next);
      const from = (step % perEpoch) * BATCH;
      const loss = run.step(order.subarray(from, from + BATCH), spec.rate * (1 - step / steps));
      sum += loss;
      count++;
      if (!(loss < 1000)) return { ...last, ended: "diverged", step };
      if (!await breathe(mine)) return { ...last, ended: "stopped", step };
    }
    return { ...last, ended: "done", seconds: (performance.now() - started) / 1000 };
  },

  // One drawn image, pixel by pixel from 0 to 1.
  read({ image }) {
    if (!network) return { p: null };
    const places = [], ink = [];
    image.forEach((value, p) => { if (value > 0) { places.push(p); ink.push(value * digits.span); } });
    fillUp(places, ink);
    const drawn = { starts: [0, places.length], places, ink, labels: [0], blank: digits.blank };
    network.net.forward(network.theta, drawn, [0]);
    return { p: Array.from(network.net.p.subarray(0, 10)) };
  },
};

onmessage = async ({ data: { number, what, ...given } }) => {
  if (what === "pause") {
    let go;
    const promise = new Promise(resolve => { go = resolve; });
    paused ??= { promise, go };
    return;
  }
  if (what === "resume") {
    paused?.go();
    paused = null;
    return;
  }
  if (what !== "read") job = number; // whatever ran before gives way
  if (what === "stop") return;
  const tell = news => postMessage({ number, news });
  try {
    postMessage({ number, result: await JOBS[what]({ ...given, mine: number, tell }) });
  } catch (error) {
    postMessage({ number, result: { ended: "failed", reason: String(error) } });
  }
};
