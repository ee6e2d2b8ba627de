// Train in a plane: d directions, all weights, or single weights.
"use strict";

// What moved, as images of the weights into eight hidden units.
function movers() {
  const canvases = Array.from({ length: 8 }, smallCanvas), scale = el("span");
  const pictures = el("div", { class: "movers", role: "img",
    "aria-label": "theta minus theta0 of eight hidden units, each as an image of 28 by 28 weights" }, ...canvases);
  return {
    root: el("figure", {}, pictures, el("figcaption", {},
      "What moved: \u03b8 \u2212 \u03b80 of eight hidden units. Orange up, blue down", scale, ".")),
    show(moved) {
      const largest = moved.reduce((most, unit) => unit.reduce((m, value) => Math.max(m, Math.abs(value)), most), 0) / 2;
      scale.textContent = largest ? `, full colour from \u00b1${largest.toPrecision(2)} on` : "";
      canvases.forEach((canvas, u) => paint(canvas, moved[u], largest || 1));
    },
  };
}

KINDS.plane = lab => {
  lab.greeting = "Choose d and press Train.";
  const sizes = roundNumbers(1, 10000);
  const family = lab.field("family", "What may move", ["hadamard", "identity", "coordinates"], "hadamard",
    { kind: "radio", names: { identity: "All weights", coordinates: "Single weights", hadamard: "A random plane" } });
  const d = lab.field("d", "d, directions", sizes, 200, { kind: "range", show: n => `${grouped(n)} of ${grouped(D)}` });
  const seed = lab.seedField(), epochs = lab.epochsField(10);
  const accuracy = el("div"), loss = el("div"), earlier = el("p", { class: "earlier" }), read = tiles(lab), moving = movers();
  let charts;

  function draw() {
    charts = [accuracyChart(lab, lab.runs), epochsChart(lab, lab.runs.slice(-1), { y: [0, 2.5], yTicks: [0, 1, 2],
      yLabel: "loss: dashed on the digits it trains on", name: "Loss against epochs" })];
    accuracy.replaceChildren(charts[0].root);
    loss.replaceChildren(charts[1].root);
    const before = lab.runs.slice(0, -1).map(run => `${percent(run.curve.at(-1).accuracy)} (${movable(run.spec)})`);
    earlier.textContent = before.length ? `Your earlier runs, in grey: ${before.join(", ")}.` : "";
    lab.runs.forEach((run, i) => {
      const now = i === lab.runs.length - 1;
      charts[0].line(run.curve.map(news => [news.epoch, news.accuracy]), now ? "first" : "old");
      if (!now) return;
      charts[1].line(run.curve.map(news => [news.epoch, news.loss]), "first");
      charts[1].line(run.curve.filter(news => news.trainLoss != null).map(news => [news.epoch, news.trainLoss]), "dashed");
    });
  }

  async function train() {
    const quiet = matchMedia("(prefers-reduced-motion: reduce)").matches;
    const run = await lab.train({}, (news, running) => {
      if (!lab.runs.includes(running)) lab.runs = [...lab.runs.slice(-9), running];
      draw();
      if (quiet && news.epoch < running.spec.epochs) return;
      read.show(news.guesses);
      moving.show(news.moved);
    });
    if (run.superseded) return;
    lab.mode("done");
    lab.say(lab.told(run));
    charts[0].say(lab.told(run));
  }

  lab.live.append(
    el("div", { class: "controls" }, family, d),
    el("div", { class: "strip" }, lab.button("Train", train, true), lab.button("Stop", () => lab.stop()), seed, epochs),
    lab.status,
    el("div", { class: "panels" }, accuracy, el("div", {}, read.root, earlier), loss, moving.root),
    drawing(lab),
    lab.exercise(
      "Train a random plane and single weights to the end, with the same d between 100 and 1,000, the same dice and the same "
      + "epochs. By how many points of accuracy is the plane ahead? Then press Check: it looks at your last runs.",
      () => {
        const done = lab.runs.filter(run => run.ended === "done");
        for (const plane of done.filter(run => run.spec.family === "hadamard").reverse()) {
          const twin = done.findLast(run => run.spec.family === "coordinates"
            && ["d", "seed", "epochs"].every(name => run.spec[name] === plane.spec[name]));
          if (!twin || plane.spec.d < 100 || plane.spec.d > 1000) continue;
          return [true, `At d = ${grouped(plane.spec.d)} the plane reads ${percent(plane.accuracy)}, and as many single weights ${percent(twin.accuracy)}.`];
        }
        return [false, "There is no pair of finished runs with the same d between 100 and 1,000, the same dice and epochs, one of each kind."];
      }),
  );
  lab.fields.epochs.changed = draw;
  lab.fields.family.changed = () => { lab.fields.d.node.disabled = lab.value("family") === "identity"; };
  lab.fields.family.changed();
  draw();
};
