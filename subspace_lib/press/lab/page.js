// The page: controls, pictures and words around the worker. `work` is a function that holds engine.js and worker.js.
"use strict";

const D = 159010, LONGEST_LINK = 20000;
const DAMAGED = "The address of this page held a set-up that is damaged or of another version, or for another page. These are the usual settings.";

// An element with its attributes and children; text stays text, whatever it holds.
function el(tag, attributes = {}, ...children) {
  const svg = /^(svg|g|polyline|line|text|circle)$/.test(tag);
  const node = svg ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value === true) node.setAttribute(name, "");
    else if (value !== false && value != null) node.setAttribute(name, value);
  }
  node.append(...children);
  return node;
}

const percent = share => `${(100 * share).toFixed(1)}%`;
const grouped = number => String(number).replace(/\B(?=(\d{3})+$)/g, ","); // toLocaleString takes 40 ms the first time
const mean = numbers => numbers.reduce((sum, value) => sum + value, 0) / numbers.length;
const movable = ({ family, d }) => family === "identity" ? "all weights"
  : family === "coordinates" ? `${grouped(d)} single weights` : `d = ${grouped(d)}`;
// Round numbers between two, about ten in each power of ten.
const roundNumbers = (low, high) => [1, 10, 100, 1000, 10000]
  .flatMap(power => [1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8].map(first => first * power))
  .filter(n => Number.isInteger(n) && n >= low && n <= high);

// A chart of lines over x. Colours come from the style sheet, so that they follow the theme.
function chart({ x, y, xLabel, yLabel, xTicks, yTicks, log = false, name }) {
  const W = 350, H = 200, left = 40, right = 22, top = 20, bottom = 34;
  const to = value => (log ? Math.log(value) : value);
  const X = value => left + (W - left - right) * (to(value) - to(x[0])) / (to(x[1]) - to(x[0]));
  const Y = value => H - bottom - (H - top - bottom) * (Math.min(y[1], Math.max(y[0], value)) - y[0]) / (y[1] - y[0]);
  const root = el("svg", { viewBox: `0 0 ${W} ${H}`, role: "img", "aria-label": name });
  for (const tick of yTicks) {
    root.append(el("line", { class: "grid", x1: left, x2: W - right, y1: Y(tick), y2: Y(tick) }),
      el("text", { x: left - 5, y: Y(tick) + 4, "text-anchor": "end" }, String(tick)));
  }
  for (const tick of xTicks) {
    root.append(el("text", { x: X(tick), y: H - bottom + 15, "text-anchor": "middle" }, grouped(tick)));
  }
  root.append(el("text", { x: (left + W - right) / 2, y: H - 3, "text-anchor": "middle" }, xLabel),
    el("text", { x: 4, y: 12 }, yLabel));
  const lines = el("g");
  root.append(lines);
  return {
    root,
    say: words => root.setAttribute("aria-label", `${name}: ${words}`),
    line(points, kind) {
      lines.append(el("polyline", { class: kind, points: points.map(([a, b]) => `${X(a)},${Y(b)}`).join(" ") }));
    },
    points(points, kind) {
      lines.append(...points.map(([a, b]) => el("circle", { class: kind, cx: X(a), cy: Y(b), r: 4 })));
    },
    label(a, b, text, below = false) {
      lines.append(el("text", { x: X(a), y: Y(b) + (below ? 14 : -5) }, text));
    },
  };
}

class Laboratory {
  constructor(root) {
    Object.assign(this, { root, kind: root.dataset.lab });
    this.config = JSON.parse(root.querySelector(".setup").content.textContent);
    this.read();
    Object.assign(this, { numbers: 0, waiting: new Map(), fields: {}, runs: [] });
  }

  begin(address) {
    const missing = !window.Worker ? "workers" : !window.DecompressionStream ? "DecompressionStream" : "";
    if (missing) return this.giveUp(`This browser has no ${missing}, which the laboratory needs.`);
    try {
      this.worker = new Worker(address);
    } catch {
      return this.giveUp("This browser, or the frame that this page stands in, allows no workers.");
    }
    this.worker.onerror = event => {
      event.preventDefault();
      this.giveUp("The worker of this laboratory failed, or the server of this page allows none.");
    };
    this.worker.onmessage = ({ data: { number, news, result } }) => {
      const job = this.waiting.get(number);
      if (job && news) job.tell(news);
      if (job && result) {
        this.waiting.delete(number);
        job.end(result);
      }
    };
    document.addEventListener("visibilitychange", () => this.post(document.hidden ? "pause" : "resume"));
    if (document.hidden) this.post("pause");
    this.build();
  }

  giveUp(why) {
    this.live?.remove();
    this.mode("idle");
    this.root.querySelector(".still").hidden = false;
    this.root.querySelector(".why").textContent = `${why} The picture shows a finished run.`;
  }

  post(what, given = {}) {
    this.worker.postMessage({ number: ++this.numbers, what, ...given });
    return this.numbers;
  }

  // A job of the worker. A new one ends those before it; theirs say "stopped".
  ask(what, given = {}, tell = () => {}) {
    if (what !== "read") this.giveWay();
    const number = this.post(what, given);
    return new Promise(end => this.waiting.set(number, { tell, end }));
  }

  giveWay() {
    for (const [number, job] of this.waiting) {
      this.waiting.delete(number);
      job.end({ ended: "stopped" });
    }
  }

  // The set-up in the address: #lab=plane&v=1&n=1&d=200 ... Nothing of it is ever shown.
  read() {
    this.given = new URLSearchParams();
    this.complaint = "";
    const all = [...document.querySelectorAll(".subspace-lab")];
    this.index = 1 + all.indexOf(this.root);
    const text = location.hash, given = new URLSearchParams(text.slice(1, LONGEST_LINK + 1000));
    if (!text.startsWith("#lab=")) return;
    const whole = text.length < LONGEST_LINK + 900;
    const meant = all.find((lab, i) => lab.dataset.lab === given.get("lab") && (given.get("n") ?? i + 1) == i + 1);
    if (meant === this.root && given.get("v") === "1" && whole) {
      this.given = given;
      this.addressed = true;
    } else if (this.root === (meant ?? all[0])) this.complaint = DAMAGED;
  }

  write(more = {}) {
    const state = new URLSearchParams({ lab: this.kind, v: "1", n: this.index });
    for (const [name, field] of Object.entries(this.fields)) state.set(name, field.value());
    for (const [name, value] of Object.entries(more)) state.set(name, value);
    this.state = `#${state}`;
    try {
      history.replaceState(history.state, "", this.state);
    } catch { /* a frame without an address of its own */ }
  }

  // A control with its label. `allowed` are its values; what the address asks for must be one of them.
  field(name, label, allowed, value, { names = {}, kind = "select", show = String } = {}) {
    const asked = this.given.get(name);
    const found = asked === null ? value : allowed.find(choice => String(choice) === asked);
    if (found === undefined) this.complaint = DAMAGED;
    const now = found ?? value, id = `subspace-lab-${this.index}-${name}`;
    let node, read, shown = [];
    if (kind === "range") {
      const output = el("output", { for: id }, show(now));
      node = el("input", { type: "range", id, min: 0, max: allowed.length - 1, value: allowed.indexOf(now),
        autocomplete: "off", "aria-valuetext": show(now) });
      node.addEventListener("input", () => {
        output.textContent = show(read());
        node.setAttribute("aria-valuetext", show(read()));
      });
      read = () => allowed[node.value];
      shown = [output];
    } else if (kind === "radio") {
      const buttons = allowed.map(choice => el("input", { type: "radio", name: id, value: choice, checked: choice === now,
        autocomplete: "off" }));
      node = el("fieldset", {}, el("legend", {}, label),
        ...buttons.map((button, i) => el("label", {}, button, names[allowed[i]] ?? String(allowed[i]))));
      read = () => allowed[buttons.findIndex(button => button.checked)];
    } else {
      node = el("select", { id, autocomplete: "off" },
        ...allowed.map(choice => el("option", { selected: choice === now }, names[choice] ?? show(choice))));
      read = () => allowed[node.selectedIndex];
    }
    const field = { node, value: read, changed: () => {} };
    node.addEventListener("input", () => { field.changed(); this.write(); });
    this.fields[name] = field;
    return kind === "radio" ? node : el("div", { class: "field" }, el("label", { for: id }, label), node, ...shown);
  }

  value(name) { return this.fields[name]?.value(); }

  button(name, press, primary = false) {
    return el("button", { type: "button", class: primary ? "primary" : null, onclick: press }, name);
  }

  seedField() { return this.field("seed", "Dice (seed)", [0, 1, 2, 3, 4, 5, 6, 7, 8, 9], 0); }
  epochsField(value) { return this.field("epochs", "Epochs", [2, 5, 10, 20], value); }

  stop() {
    this.giveWay();
    this.post("stop");
    if (this.root.dataset.state === "training") this.mode("done");
  }

  say(words) { this.status.textContent = words; }
  mode(state) { this.root.dataset.state = state; }

  async build() {
    this.live = el("div", { class: "live" });
    this.status = el("p", { role: "status" });
    const { shown } = await this.ask("open", { data: { ...this.config.data, text: this.root.querySelector(".digits").content.textContent } });
    if (!shown) return this.giveUp("The digits of this page could not be unpacked.");
    this.shown = shown;
    KINDS[this.kind](this);
    if (this.config.notice) this.live.prepend(el("p", { class: "notice" }, this.config.notice));
    this.root.querySelector(".still").hidden = true;
    this.root.append(this.live);
    this.root.dataset.ready = "";
    this.say(this.complaint || this.greeting);
    if (this.addressed) this.comeIntoView();
    if (this.given.has("z")) this.openLink();
  }

  // Keeps the laboratory in view while the page around it still grows; a reader who moves ends that.
  comeIntoView() {
    const watch = new ResizeObserver(() => this.root.scrollIntoView());
    watch.observe(document.body);
    const end = () => watch.disconnect();
    for (const moved of ["wheel", "pointerdown", "keydown"]) addEventListener(moved, end, { once: true });
    setTimeout(end, 5000);
  }

  // Trains once with the settings at hand, or others, and keeps the run.
  async train(over = {}, tell = () => {}) {
    const spec = {
      family: this.value("family") ?? "hadamard", d: this.value("d"), seed: this.value("seed"),
      epochs: this.value("epochs"), rate: this.value("rate") ?? 0.1, optimiser: "adam", norm: 1, ...over,
    };
    if (spec.family === "identity") Object.assign(spec, { d: D, rate: over.rate ?? 0.003 });
    const run = { spec, curve: [] }, mine = this.training = {};
    let spoken = -1;
    this.mode("training");
    const result = await this.ask("train", { spec }, news => {
      run.curve.push(news);
      this.root.dataset.accuracy = news.accuracy.toFixed(4);
      if (Math.floor(news.epoch) > spoken && news.epoch < spec.epochs) {
        spoken = Math.floor(news.epoch);
        this.say(`${spoken ? `Epoch ${spoken} of ${spec.epochs}` : "Before training"}: the network reads ${percent(news.accuracy)} of ${grouped(this.config.data.test)} digits.`);
      }
      tell(news, run);
    });
    return Object.assign(run, { accuracy: run.curve.at(-1)?.accuracy }, result, { superseded: this.training !== mine });
  }

  // What a run came to, in words.
  told({ spec, ended, accuracy, step, seconds }) {
    const numbers = accuracy == null ? "" : ` It last read ${percent(accuracy)} of the digits.`;
    if (ended === "stopped") return `Stopped.${numbers}`;
    if (ended === "diverged") {
      return `The training diverged and was ended at step ${step}: its steps were too long, and the loss ran away. Choose a smaller learning rate.`;
    }
    if (ended !== "done") return "The worker failed; load the page again.";
    return `Done in ${seconds.toFixed(0)} s: with ${movable(spec)}, ${spec.epochs} epochs and dice ${spec.seed}, the network reads ${percent(accuracy)} of ${grouped(this.config.data.test)} digits that it never trained on.`;
  }

  // An exercise, and a button that looks at the laboratory itself.
  exercise(words, check) {
    const verdict = el("p", { role: "status", class: "verdict" });
    const answer = () => {
      const [right, why] = check();
      verdict.textContent = `${right ? "Right." : "Not yet."} ${why}`;
      this.root.dataset.check = right ? "right" : "wrong";
    };
    return el("details", { class: "exercise" }, el("summary", {}, "Exercise"), el("p", {}, words),
      this.button("Check", answer), verdict);
  }
}

// The laboratories: which controls, which pictures, and what a press on a button does. Each has a file of its own.
const KINDS = {};

// A chart over as many epochs as the longest of these runs has, or the next one will have.
function epochsChart(lab, runs, settings) {
  const last = Math.max(lab.value("epochs"), ...runs.map(run => run.spec.epochs));
  return chart({ x: [0, last], xTicks: [0, last / 2, last], xLabel: "epochs", ...settings });
}

const accuracyChart = (lab, runs) => epochsChart(lab, runs,
  { y: [0, 1], yTicks: [0, 0.5, 1], yLabel: "accuracy on digits not trained on", name: "Accuracy against epochs" });

// The worker's code is this script itself, where a server has sent it as a file of its own: so a server may forbid all
// other code. From a page that holds its script, and from a file on disk, it is `work`, written out.
function startLaboratories(work) {
  const script = document.currentScript?.src ?? "";
  const address = script.startsWith("http") ? script : URL.createObjectURL(new Blob([`(${work})()`]));
  const begin = root => new Laboratory(root).begin(address);
  const seen = new IntersectionObserver(entries => {
    for (const { isIntersecting, target } of entries) {
      if (!isIntersecting) continue;
      seen.unobserve(target);
      begin(target);
    }
  }, { rootMargin: "200px" });
  for (const root of document.querySelectorAll(".subspace-lab[data-waiting]")) {
    if (!KINDS[root.dataset.lab]) continue; // another laboratory, with a script of its own
    delete root.dataset.waiting;
    if (location.hash.startsWith(`#lab=${root.dataset.lab}&`)) begin(root);
    else seen.observe(root);
  }
}
addEventListener("hashchange", () => { if (location.hash.startsWith("#lab=")) location.reload(); });
