// A network in a link: z rounded to b bits, and an address that rebuilds it.
"use strict";

const BITS = [1, 2, 3, 4, 5, 6, 8, 32];

KINDS.link = lab => {
  lab.greeting = "Press Train. Then move the bits, and send the network as a link.";
  const d = lab.field("d", "d, directions", roundNumbers(10, 2000), 200, { kind: "range", show: grouped });
  const seed = lab.seedField(), epochs = lab.epochsField(5);
  const bits = lab.field("bits", "b, bits a number", BITS, 4, { kind: "range", show: String });
  const figure = el("div"), size = el("p", { class: "result" }), read = tiles(lab);
  const address = el("input", { type: "text", readonly: true, id: `subspace-lab-${lab.index}-address` });
  const copied = el("span", { role: "status" });
  let rounded = [], spec = null;

  function draw() {
    const picture = chart({
      x: [10, 10000], y: [0, 1], log: true, xTicks: [10, 100, 1000, 10000], yTicks: [0, 0.5, 1], xLabel: "bytes of the file",
      yLabel: "accuracy, at 1 to 32 bits a number", name: "Accuracy against bytes of the file",
    });
    const points = rounded.map(({ bytes, accuracy }) => [bytes, accuracy]);
    picture.line(points, "first");
    picture.points(points, "first");
    const now = rounded.find(one => one.bits === lab.value("bits"));
    if (now) {
      picture.points([[now.bytes, now.accuracy]], "chosen");
      picture.say(`${now.bytes} bytes, ${percent(now.accuracy)}`);
      size.textContent = `${grouped(now.bytes)} bytes: ${percent(now.accuracy)} of ${grouped(lab.config.data.test)} digits. Mark of the network: ${now.mark}.`;
      lab.root.dataset.accuracy = now.accuracy.toFixed(4);
      lab.root.dataset.mark = now.mark;
      lab.root.dataset.bytes = now.bytes;
      lab.write({ d: spec.d, seed: spec.seed, z: now.text });
      const long = lab.state.length > LONGEST_LINK;
      if (long) lab.write();
      address.value = long ? "" : location.href.split("#")[0] + lab.state;
      if (long) size.textContent += " Too long for a link: choose fewer bits or a smaller d.";
    }
    figure.replaceChildren(picture.root);
  }

  async function train() {
    rounded = [];
    address.value = "";
    lab.write();
    draw();
    const run = await lab.train({}, news => read.show(news.guesses));
    if (run.superseded) return;
    lab.runs = [run];
    spec = run.spec;
    if (run.ended !== "done") {
      lab.mode("done");
      return lab.say(lab.told(run));
    }
    lab.say("Rounding z ...");
    const { found } = await lab.ask("roundings", { choices: BITS });
    if (!found) return;
    rounded = found;
    draw();
    lab.mode("done");
    lab.say(lab.told(run));
  }

  lab.openLink = async () => {
    spec = { family: "hadamard", d: lab.value("d"), seed: lab.value("seed") };
    lab.mode("training");
    const found = await lab.ask("link", { spec, bits: lab.value("bits"), text: lab.given.get("z") }, news => read.show(news.guesses));
    lab.mode("done");
    if (found.ended !== "done") {
      lab.mode("idle");
      return lab.say("The network in this link is damaged: it was cut, or changed on its way. Train one of your own.");
    }
    Object.assign(lab.root.dataset, { accuracy: found.accuracy.toFixed(4), mark: found.mark });
    lab.say(`You have opened a network: d = ${grouped(spec.d)}, dice ${spec.seed}, ${lab.value("bits")} bits a number. It reads ${percent(found.accuracy)} of ${grouped(lab.config.data.test)} digits. Its mark is ${found.mark}: the sender sees the same word if it is the same, bit for bit.`);
  };

  async function copy() {
    address.select();
    if (!address.value) return copied.textContent = "Train first.";
    try {
      await navigator.clipboard.writeText(address.value);
      copied.textContent = "Copied.";
    } catch {
      copied.textContent = "The link is marked: copy it by hand.";
    }
  }

  lab.live.append(
    el("div", { class: "controls" }, d, bits),
    el("div", { class: "strip" }, lab.button("Train", train, true), lab.button("Stop", () => lab.stop()), seed, epochs),
    lab.status,
    el("div", { class: "panels" }, figure, read.root),
    size,
    el("div", { class: "strip address" }, el("label", { for: address.id }, "The network as a link"), address, lab.button("Copy link", copy), copied),
    drawing(lab),
    lab.exercise(
      `Fit a network that reads ${percent(lab.config.goal.accuracy)} of the digits into ${lab.config.goal.bytes} bytes. Which d, and how many bits? Then press Check: it weighs the network at hand.`,
      () => {
        const now = rounded.find(one => one.bits === lab.value("bits"));
        if (!now) return [false, "There is no trained network at hand."];
        return [now.bytes <= lab.config.goal.bytes && now.accuracy >= lab.config.goal.accuracy, `Yours takes ${now.bytes} bytes and reads ${percent(now.accuracy)}.`];
      }),
  );
  lab.fields.bits.changed = draw;
  draw();
};
