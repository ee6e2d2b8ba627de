// Measure the intrinsic dimension: accuracy over d, run by run or by a search.
"use strict";

// The increasing curve nearest to the points: neighbours that fall are pooled.
function increasing(points) {
  const pools = [];
  for (const [d, accuracy] of points) {
    pools.push({ mean: accuracy, members: [d] });
    while (pools.length > 1 && pools.at(-2).mean > pools.at(-1).mean) {
      const b = pools.pop(), a = pools.pop(), n = a.members.length, m = b.members.length;
      pools.push({ mean: (n * a.mean + m * b.mean) / (n + m), members: [...a.members, ...b.members] });
    }
  }
  return pools.flatMap(({ mean, members }) => members.map(d => [d, mean]));
}

// Where a curve first reaches the level, between its points on log d; null if it never does.
function crossing(points, level) {
  const curve = increasing(points);
  const above = curve.findIndex(([, accuracy]) => accuracy >= level);
  if (above <= 0) return above ? null : curve[0][0];
  const [[d0, a0], [d1, a1]] = [curve[above - 1], curve[above]];
  return Math.exp(Math.log(d0) + (Math.log(d1) - Math.log(d0)) * (level - a0) / (a1 - a0));
}

KINDS.dimension = lab => {
  lab.greeting = "Choose d and press Train: each run adds a point. Or let Search for me find where the curve crosses the line.";
  const { recorded } = lab.config, sizes = roundNumbers(10, 10000);
  const d = lab.field("d", "d, directions", sizes, 100, { kind: "range", show: grouped });
  const seed = lab.seedField(), epochs = lab.epochsField(5);
  const seeds = lab.field("seeds", "Runs at each d in a search", [1, 3], 1);
  const level = lab.field("line", "The line at 90% of", ["own", "fixed"], "own",
    { names: { own: "my own baseline", fixed: `the recorded baseline, ${recorded.baseline.toFixed(3)}` } });
  const figure = el("div"), result = el("p", { role: "status" });
  let found = null;

  const key = () => lab.value("epochs");
  const ran = () => lab.runs.filter(run => run.ended === "done" && run.spec.epochs === key());
  const baselines = () => ran().filter(run => run.spec.family === "identity").map(run => run.accuracy);
  const planes = () => ran().filter(run => run.spec.family === "hadamard");
  const baseline = () => lab.value("line") === "fixed" ? recorded.baseline : baselines().length ? mean(baselines()) : null;

  // The points of these runs: the mean accuracy at each d.
  function curveOf(runs) {
    const at = new Map();
    for (const run of runs) at.set(run.spec.d, [...(at.get(run.spec.d) ?? []), run.accuracy]);
    return [...at].map(([d, values]) => [d, mean(values)]).sort((a, b) => a[0] - b[0]);
  }

  function draw() {
    const picture = chart({
      x: [10, 10000], y: [0, 1], log: true, xTicks: [10, 100, 1000, 10000], yTicks: [0, 0.5, 1], xLabel: "d",
      yLabel: "accuracy", name: "Accuracy against d: your runs, and the recorded full-size runs",
    });
    picture.line(recorded.curve, "old");
    picture.label(...recorded.curve[0], "recorded, full size", true);
    if (baseline() !== null) {
      picture.line([[10, 0.9 * baseline()], [10000, 0.9 * baseline()]], "dashed");
      picture.label(10, 0.9 * baseline(), "90% line");
    }
    const mine = curveOf(planes());
    picture.line(mine, "first");
    picture.points(planes().map(run => [run.spec.d, run.accuracy]), "first");
    picture.say(mine.map(([d, accuracy]) => `${percent(accuracy)} at d = ${d}`).join(", ") || "no run yet");
    figure.replaceChildren(picture.root);
  }

  async function run(over = {}) {
    const done = await lab.train(over);
    if (done.ended === "done") lab.runs.push(done);
    draw();
    return done;
  }

  const single = over => async () => {
    lab.searching = null;
    const done = await run(over);
    if (done.superseded) return;
    lab.mode("done");
    lab.say(lab.told(done));
  };

  // Brackets by doubling, then halves on log d until the ends are within a tenth. The seeds are those from `seed` on.
  async function search() {
    lab.stop();
    found = null;
    const mine = lab.searching = {}, count = lab.value("seeds"), first = lab.value("seed"), guess = lab.value("d");
    const dice = Array.from({ length: count }, (_, i) => first + i);
    const kept = (family, d, seed) => ran().find(run => run.spec.family === family && run.spec.seed === seed
      && (family === "identity" || run.spec.d === d));
    const go = async (family, d, seed) => {
      const done = kept(family, d, seed) ?? await run({ family, d, seed });
      if (done.ended !== "done" || lab.searching !== mine) throw done;
      return done.accuracy;
    };
    try {
      if (lab.value("line") === "own") for (const seed of dice) await go("identity", D, seed);
      const line = 0.9 * (lab.value("line") === "own" ? mean(baselines()) : recorded.baseline), tried = new Map();
      const reaches = async d => {
        if (!tried.has(d)) {
          const values = [];
          for (const seed of dice) values.push(await go("hadamard", d, seed));
          tried.set(d, values);
        }
        return mean(tried.get(d)) >= line;
      };
      let below = guess, above = guess;
      while (!await reaches(above) && above < 10000) [below, above] = [above, Math.min(2 * above, 10000)];
      while (await reaches(below) && below > 10) [below, above] = [Math.max(10, Math.floor(below / 2)), below];
      if (!await reaches(above)) return finish(`Not reached: even d = 10,000 stays below the line at ${percent(line)}. More epochs would help.`);
      while (above > 1.1 * below && above - below > 1) {
        const middle = Math.round(Math.sqrt(below * above));
        if (await reaches(middle)) above = middle; else below = middle;
      }
      const points = [...tried].sort((a, b) => a[0] - b[0]);
      const all = crossing(points.map(([d, values]) => [d, mean(values)]), line);
      const each = dice.map((_, i) => crossing(points.map(([d, values]) => [d, values[i]]), line) ?? Infinity);
      const [low, high] = count > 1 ? [Math.min(all, ...each), Math.max(all, ...each)] : [below, above];
      found = { d: all, low, high, guess, count };
      lab.root.dataset.d90 = all.toFixed(1);
      const upTo = high === Infinity ? "above 10,000" : grouped(Math.round(high));
      return finish(`Your intrinsic dimension: the curve crosses ${percent(line)} at d = ${grouped(Math.round(all))}, `
        + `${count > 1 ? `range ${grouped(Math.round(low))} to ${upTo} over ${count} dice` : `between ${grouped(low)}, which fell short, and ${upTo}, which did not; with one throw of the dice`}. `
        + `The recorded one is ${grouped(Math.round(recorded.d90))} (${recorded.kind} ${grouped(Math.round(recorded.low))} to ${grouped(Math.round(recorded.high))}, ${recorded.seeds} seeds). `
        + `It differs because the recorded runs had ${grouped(recorded.images)} digits to train on instead of ${grouped(lab.config.data.train)}, up to ${recorded.epochs} epochs instead of ${key()}, and a baseline of ${percent(recorded.baseline)}.`);
    } catch (done) {
      if (!done?.ended) throw done;
      if (lab.searching !== mine) return null;
      return finish(lab.told(done));
    }
  }

  function finish(words) {
    lab.searching = null;
    lab.mode("done");
    result.textContent = found ? words : "";
    lab.say(found ? "The search has ended; its result stands below the curve." : words);
  }

  lab.live.append(
    el("div", { class: "controls" }, d, el("div", { class: "strip" }, seed, epochs, level, seeds)),
    el("div", { class: "strip" }, lab.button("Train", single({}), true), lab.button("Train all weights", single({ family: "identity" })),
      lab.button("Search for me", search), lab.button("Stop", () => lab.stop())),
    lab.status, figure, result,
    lab.exercise(
      "Let the laboratory search with dice 0. Then predict what it finds with dice 5 and three runs at each d: set the slider to that d, "
      + "and search. Check asks whether the d at which you started lies in the range that the search found, give or take a tenth.",
      () => {
        if (!found || found.count < 3) return [false, "No search with three runs at each d has ended yet."];
        const { guess, low, high } = found;
        return [guess >= 0.9 * low && guess <= 1.1 * high, `You started at ${grouped(guess)}; the search found ${grouped(Math.round(found.d))}.`];
      }),
  );
  for (const name of ["epochs", "line"]) lab.fields[name].changed = draw;
  draw();
};
