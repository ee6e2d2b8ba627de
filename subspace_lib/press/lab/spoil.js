// Spoil the projection: columns of another length, and the rate that undoes it.
"use strict";

KINDS.spoil = lab => {
  lab.greeting = "Predict whether the two curves part, then press Train.";
  const norms = [0.125, 0.25, 0.5, 1, 2, 4, 8, 16], rates = { adam: 0.05, sgd: 2 };
  const optimiser = lab.field("optimiser", "Optimiser", ["adam", "sgd"], "adam", { kind: "radio", names: { adam: "Adam", sgd: "SGD" } });
  const norm = lab.field("norm", "c, length of the spoiled columns", norms, 4, { kind: "range", show: String });
  const factor = lab.field("factor", "Rate of the spoiled run, against the other's", [1 / 256, 1 / 64, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 1, 2, 4, 8, 16, 64], 1,
    { kind: "range", show: f => f < 1 ? `1/${1 / f}` : String(f) });
  const rate = lab.field("times", "Rate of the other run", [0.1, 0.3, 1, 3, 10, 1000], 1, { names: { 0.1: "a tenth of usual", 0.3: "0.3 of usual", 1: "usual", 3: "3 times usual", 10: "10 times usual", 1000: "1,000 times usual" } });
  const seed = lab.seedField(), epochs = lab.epochsField(2), figure = el("div");
  let pair = [];

  function draw() {
    const picture = accuracyChart(lab, pair);
    pair.forEach((run, i) => picture.line(run.curve.map(news => [news.epoch, news.accuracy]), i ? "second" : "first"));
    picture.say(pair.map((run, i) => `${i ? "spoiled" : "columns of length 1"} ${percent(run.curve.at(-1)?.accuracy ?? 0)}`).join(", "));
    figure.replaceChildren(picture.root, el("p", { class: "legend" }, el("span", { class: "first" }, "\u2014 columns of length 1"), " ", el("span", { class: "second" }, "- - columns of length c")));
  }

  async function train() {
    const kind = lab.value("optimiser");
    const usual = rates[kind] * lab.value("times"), c = lab.value("norm"), share = lab.value("factor");
    pair = [];
    lab.runs = [];
    for (const over of [{ rate: usual, norm: 1 }, { rate: usual * share, norm: c }]) {
      const run = await lab.train({ ...over, d: 200, optimiser: kind }, (news, running) => {
        if (!pair.includes(running)) pair.push(running);
        draw();
      });
      if (run.superseded) return;
      lab.runs.push({ ...run, c, share });
      if (run.ended !== "done") {
        lab.mode("done");
        return lab.say(`${over.norm === 1 ? "Columns of length 1" : `Columns of length ${c}`}: ${lab.told(run)}`);
      }
    }
    const [unit, spoiled] = lab.runs, gap = Math.max(...unit.curve.map((news, i) => Math.abs(news.accuracy - spoiled.curve[i].accuracy)));
    lab.mode("done");
    lab.say(gap < 0.005
      ? `One curve: they differ by ${percent(gap)} at most, and both end at ${percent(spoiled.accuracy)}.`
      : `Two curves: ${percent(unit.accuracy)} with columns of length 1, ${percent(spoiled.accuracy)} with columns of length ${c}.`);
  }

  lab.live.append(
    el("div", { class: "controls" }, optimiser, norm, factor),
    el("div", { class: "strip" }, lab.button("Train", train, true), lab.button("Stop", () => lab.stop()), rate, seed, epochs),
    lab.status, figure,
    lab.exercise(
      "Spoil the columns with c = 4 or more, and find the rate at which the two curves become one: once with Adam, once with SGD. Press Check after each.",
      () => {
        const [unit, spoiled] = lab.runs;
        if (!spoiled || spoiled.ended !== "done") return [false, "There is no finished pair of runs."];
        if (spoiled.c < 4) return [false, "Choose a c of 4 or more."];
        const gap = Math.max(...unit.curve.map((news, i) => Math.abs(news.accuracy - spoiled.curve[i].accuracy)));
        if (unit.accuracy < 0.2) return [false, "Neither run has learnt anything: choose another rate."];
        const words = `c = ${spoiled.c}, rate times ${spoiled.share < 1 ? `1/${1 / spoiled.share}` : spoiled.share}, ${spoiled.spec.optimiser === "adam" ? "Adam" : "SGD"}: the curves differ by ${percent(gap)} at most.`;
        return [gap < 0.01, words];
      }),
  );
  lab.fields.epochs.changed = draw;
  draw();
};
