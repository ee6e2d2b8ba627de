// Digits in the page: sixteen with the network's guesses, and one that the reader draws.
"use strict";

// An image of 28 x 28 on a canvas: white ink from 0 to 1; or, where `largest` is given, signed numbers, blue below 0
// and orange above.
function paint(canvas, values, largest = 0) {
  const context = canvas.getContext("2d"), image = context.createImageData(28, 28);
  const pixels = new Uint32Array(image.data.buffer); // each is its opacity, blue, green, red
  values.forEach((value, p) => {
    const share = Math.min(1, Math.abs(value) / (largest || 1));
    pixels[p] = Math.round(255 * share) << 24 | (largest ? (value < 0 ? 0xeb6325 : 0x0c70ea) : 0xffffff);
  });
  context.putImageData(image, 0, 0);
}

const smallCanvas = () => el("canvas", { width: 28, height: 28 });

function tiles(lab) {
  const found = lab.shown.map(({ image, label }) => {
    const canvas = smallCanvas(), word = el("span", {}, "?");
    paint(canvas, image);
    return { node: el("span", { class: "tile" }, canvas, word), word, label };
  });
  const root = el("div", { class: "tiles", role: "img", "aria-label": "Sixteen digits, not read yet" },
    ...found.map(tile => tile.node));
  return {
    root,
    show(guesses) {
      found.forEach(({ node, word, label }, i) => {
        word.textContent = `${guesses[i]} ${guesses[i] === label ? "\u2713" : "\u2717"}`;
        node.classList.toggle("wrong", guesses[i] !== label);
      });
      const right = found.filter(({ label }, i) => guesses[i] === label).length;
      root.setAttribute("aria-label", `Sixteen digits: ${right} read right`);
    },
  };
}

// A canvas to draw a digit on, for the network at hand.
function drawing(lab) {
  const canvas = el("canvas", { width: 280, height: 280, class: "paper", role: "img", tabindex: 0,
    "aria-label": "Paper for a digit: draw with a finger or a mouse, or move a pen with the arrow keys" });
  const verdict = el("p", { role: "status" }, "A trained network reads what you draw.");
  const context = canvas.getContext("2d", { willReadFrequently: true });
  let pen = null, keyed = [140, 60];

  function stroke(to) {
    Object.assign(context, { lineWidth: 22, lineCap: "round", lineJoin: "round", strokeStyle: "#fff" });
    context.beginPath();
    context.moveTo(...(pen ?? to));
    context.lineTo(...to);
    context.stroke();
    pen = to;
  }

  async function look() {
    const image = centred(context.getImageData(0, 0, 280, 280).data, 280);
    if (typeof image === "string") return verdict.textContent = image;
    const { p } = await lab.ask("read", { image });
    if (!p) return verdict.textContent = "There is no network yet: train one first.";
    const [first, second] = [...p.keys()].sort((a, b) => p[b] - p[a]);
    canvas.dataset.guess = first;
    verdict.textContent = `${p[first] < 0.5 ? "The network is not sure: perhaps" : "The network reads"} a ${first} (${percent(p[first])}), or else a ${second} (${percent(p[second])}).`;
  }

  function clear() {
    context.clearRect(0, 0, 280, 280);
    pen = null;
    keyed = [140, 60];
    verdict.textContent = "An empty paper.";
  }

  const at = event => {
    const box = canvas.getBoundingClientRect();
    return [280 * (event.clientX - box.left) / box.width, 280 * (event.clientY - box.top) / box.height];
  };
  canvas.addEventListener("pointerdown", event => {
    canvas.setPointerCapture(event.pointerId);
    pen = null;
    stroke(at(event));
  });
  canvas.addEventListener("pointermove", event => { if (event.buttons) stroke(at(event)); });
  canvas.addEventListener("pointerup", look);
  canvas.addEventListener("keydown", event => {
    const way = { ArrowUp: [0, -20], ArrowDown: [0, 20], ArrowLeft: [-20, 0], ArrowRight: [20, 0] }[event.key];
    if (!way) return;
    event.preventDefault();
    const next = keyed.map((place, i) => Math.min(265, Math.max(15, place + way[i])));
    if (!event.shiftKey) {
      pen = keyed;
      stroke(next);
      look();
    }
    keyed = next;
  });
  return el("details", { class: "draw" }, el("summary", {}, "Draw a digit"),
    el("p", {}, "Draw one large digit. It is shrunk and centred as MNIST's digits are, and the network at hand reads it. With the keyboard: arrow keys draw, with Shift they only move the pen."),
    canvas, el("div", { class: "strip" }, lab.button("Read it", look), lab.button("Clear", clear)), verdict);
}

// A drawing as MNIST keeps its digits: 20 x 20, its centre of mass in the middle of 28 x 28. Or a sentence that says
// why not.
function centred(data, size) {
  const xs = [], ys = [];
  for (let p = 0; p < size * size; p++) {
    if (data[4 * p + 3] < 128) continue;
    xs.push(p % size);
    ys.push(Math.floor(p / size));
  }
  if (!xs.length) return "The paper is empty: draw a digit first.";
  if (xs.length > 0.6 * size * size) return "Most of the paper is covered: clear it, and draw one digit.";
  const least = numbers => numbers.reduce((a, b) => Math.min(a, b)), most = numbers => numbers.reduce((a, b) => Math.max(a, b));
  const left = least(xs), top = least(ys), side = Math.max(most(xs) - left, most(ys) - top) + 1;
  const cell = Math.max(side / 20, 1), shrunk = new Float32Array(400), image = new Float32Array(784);
  xs.forEach((x, k) => { shrunk[20 * Math.floor((ys[k] - top) / cell) + Math.floor((x - left) / cell)] += 1 / cell ** 2; });
  const moveX = Math.round(13.5 - (mean(xs) - left) / cell), moveY = Math.round(13.5 - (mean(ys) - top) / cell);
  shrunk.forEach((value, p) => {
    const x = (p % 20) + moveX, y = Math.floor(p / 20) + moveY;
    if (x >= 0 && x < 28 && y >= 0 && y < 28) image[28 * y + x] = Math.min(1, value);
  });
  return image;
}
