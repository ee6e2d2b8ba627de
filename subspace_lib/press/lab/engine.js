// The engine of the laboratory: theta = theta0 + P z, trained by hand on plain arrays. The letters are those of the text.
"use strict";

// Random numbers in [0, 1): sfc32 of Chris Doty-Humphrey. One seed gives a stream for each purpose.
const PURPOSE = { theta0: 1, P: 2, batches: 3 };

function dice(seed, purpose) {
  let a = seed | 0, b = purpose | 0, c = 0x9e3779b9 | 0, count = 1;
  function next() {
    const sum = ((a + b) | 0) + count | 0;
    count = (count + 1) | 0;
    a = b ^ (b >>> 9);
    b = (c + (c << 3)) | 0;
    c = (((c << 21) | (c >>> 11)) + sum) | 0;
    return (sum >>> 0) / 4294967296;
  }
  for (let i = 0; i < 15; i++) next();
  return next;
}

const sign = next => (next() < 0.5 ? -1 : 1);

// The numbers 0 to n - 1 in random order.
function shuffled(n, next) {
  const order = Int32Array.from({ length: n }, (_, i) => i);
  for (let i = n - 1; i > 0; i--) {
    const j = Math.floor((i + 1) * next());
    [order[i], order[j]] = [order[j], order[i]];
  }
  return order;
}

// Every P is two products. write: theta = theta0 + P z. pull: the gradient of z, P^T times the gradient of theta.

// All weights: P is the identity, and z has D numbers.
function identity(D) {
  return {
    D, d: D,
    write(theta0, z, theta) { for (let i = 0; i < D; i++) theta[i] = theta0[i] + z[i]; },
    pull(grad, out) { out.set(grad); },
  };
}

// Single weights: coordinate j of z moves the one weight place[j], and all other weights stand still.
function coordinates(D, d, place) {
  return {
    D, d,
    write(theta0, z, theta) {
      theta.set(theta0);
      for (let j = 0; j < d; j++) theta[place[j]] += z[j];
    },
    pull(grad, out) { for (let j = 0; j < d; j++) out[j] = grad[place[j]]; },
  };
}

// Each weight follows one coordinate: entry[i] = j stands for +z_j, and j + d for -z_j.
function oneHot(D, d, entry) {
  const size = new Float64Array(d);
  for (let i = 0; i < D; i++) size[entry[i] % d]++;
  const scale = Float32Array.from(size, n => 1 / Math.sqrt(n));
  const table = new Float32Array(2 * d), sums = new Float64Array(2 * d);
  return {
    D, d,
    write(theta0, z, theta) {
      for (let j = 0; j < d; j++) table[j + d] = -(table[j] = z[j] * scale[j]);
      for (let i = 0; i < D; i++) theta[i] = theta0[i] + table[entry[i]];
    },
    pull(grad, out) {
      sums.fill(0);
      for (let i = 0; i < D; i++) sums[entry[i]] += grad[i];
      for (let j = 0; j < d; j++) out[j] = (sums[j] - sums[j + d]) * scale[j];
    },
  };
}

// k random weights a column. Entries j k to j k + k - 1 belong to column j: i stands for +1/sqrt(k) in row i, and
// D + i for -1/sqrt(k).
function sparse(D, d, entries) {
  const k = entries.length / d, scale = 1 / Math.sqrt(k);
  const sums = new Float64Array(D);
  return {
    D, d,
    write(theta0, z, theta) {
      sums.fill(0);
      for (let j = 0, e = 0; j < d; j++) {
        const step = z[j] * scale;
        for (const end = e + k; e < end; e++) {
          const i = entries[e];
          if (i < D) sums[i] += step; else sums[i - D] -= step;
        }
      }
      for (let i = 0; i < D; i++) theta[i] = theta0[i] + sums[i];
    },
    pull(grad, out) {
      for (let j = 0, e = 0; j < d; j++) {
        let sum = 0;
        for (const end = e + k; e < end; e++) {
          const i = entries[e];
          sum += i < D ? grad[i] : -grad[i - D];
        }
        out[j] = sum * scale;
      }
    },
  };
}

// The Hadamard transform of blocks of n rows, in place; row i of a block holds `side` numbers, one for each block
// that lies beside the others. Each pass over the memory does two steps, and where their number is odd the last does one.
function transform(x, from, n, side) {
  const end = from + n * side;
  let half = side;
  for (; 4 * half <= n * side; half *= 4) {
    for (let start = from; start < end; start += 4 * half) {
      for (let i = start, stop = start + half; i < stop; i++) {
        const a = x[i] + x[i + half], b = x[i] - x[i + half];
        const c = x[i + 2 * half] + x[i + 3 * half], d = x[i + 2 * half] - x[i + 3 * half];
        x[i] = a + c;
        x[i + half] = b + d;
        x[i + 2 * half] = a - c;
        x[i + 3 * half] = b - d;
      }
    }
  }
  if (half === n * side) return;
  for (let i = from; i < from + half; i++) [x[i], x[i + half]] = [x[i] + x[i + half], x[i] - x[i + half]];
}

// Blocks of n rows; each spreads z over all its weights: signs, a Hadamard transform, signs. A group holds `count`
// blocks, many of them side by side, few one after another; row i takes coordinate source[i] times the entry of each
// block (0 where it takes none). The last weights, too few for a block, follow one coordinate each.
function hadamard(D, d, groups, followed, followedEntries) {
  const x = new Float32Array(D), pieces = [];
  let end = 0;
  for (const { count, n, entries, ...group } of groups) {
    const side = count < 16 ? 1 : count;
    for (let from = 0; from < count * n; from += n * side) {
      pieces.push({ ...group, at: end, n, side, entries: entries.slice(from, from + n * side) });
      end += n * side;
    }
  }
  return {
    D, d,
    write(theta0, z, theta) {
      for (const { at, n, side, source, entries, rowSigns } of pieces) {
        for (let i = 0, t = 0; i < n; i++) {
          const value = z[source[i]];
          for (const stop = t + side; t < stop; t++) x[at + t] = value * entries[t];
        }
        transform(x, at, n, side);
        for (let i = 0, t = at; i < n; i++) {
          const sign = rowSigns[i];
          for (const stop = t + side; t < stop; t++) theta[t] = theta0[t] + sign * x[t];
        }
      }
      followed.forEach((j, i) => { theta[end + i] = theta0[end + i] + z[j] * followedEntries[i]; });
    },
    pull(grad, out) {
      out.fill(0);
      for (const { at, n, side, source, entries, rowSigns } of pieces) {
        for (let i = 0, t = at; i < n; i++) {
          const sign = rowSigns[i];
          for (const stop = t + side; t < stop; t++) x[t] = sign * grad[t];
        }
        transform(x, at, n, side);
        for (let i = 0, t = 0; i < n; i++) {
          let sum = 0;
          for (const stop = t + side; t < stop; t++) sum += x[at + t] * entries[t];
          out[source[i]] += sum;
        }
      }
      followed.forEach((j, i) => { out[j] += grad[end + i] * followedEntries[i]; });
    },
  };
}

// c P: the same directions with columns of another length.
function scaled(P, c) {
  if (c === 1) return P;
  const longer = new Float32Array(P.d);
  return {
    ...P,
    write(theta0, z, theta) {
      for (let j = 0; j < P.d; j++) longer[j] = c * z[j];
      P.write(theta0, longer, theta);
    },
    pull(grad, out) {
      P.pull(grad, out);
      for (let j = 0; j < P.d; j++) out[j] *= c;
    },
  };
}

// The random draws. All columns have length 1.
const DRAW = {
  identity: D => identity(D),
  coordinates: (D, d, next) => coordinates(D, d, shuffled(D, next).subarray(0, d)),
  one_hot(D, d, next) {
    const order = shuffled(D, next), entry = new Int32Array(D);
    for (let i = 0; i < D; i++) entry[order[i]] = i % (2 * d);
    return oneHot(D, d, entry);
  },
  sparse(D, d, next) {
    const k = Math.round(Math.sqrt(D)), entries = new Int32Array(d * k), drawnFor = new Int32Array(D).fill(-1);
    for (let j = 0, e = 0; j < d; j++) {
      for (const end = e + k; e < end;) {
        const i = Math.floor(D * next());
        if (drawnFor[i] === j) continue; // the rows of a column are distinct
        drawnFor[i] = j;
        entries[e++] = next() < 0.5 ? i : i + D;
      }
    }
    return sparse(D, d, entries);
  },
  hadamard(D, d, next) {
    let n = 64;
    while (n < d) n *= 2;
    const sizes = n <= D ? [[Math.floor(D / n), n]] : [];
    let left = n <= D ? D % n : D;
    for (let m = n / 2; left > D / 64; m /= 2) {
      if (left < m) continue;
      sizes.push([1, m]);
      left -= m;
    }
    const squared = new Float64Array(d); // squared length of each column
    let first = 0;
    const groups = sizes.map(([count, n]) => {
      const taken = Math.min(n, d), weight = d / taken, places = shuffled(n, next).subarray(0, taken);
      const source = new Int32Array(n), placed = new Float64Array(n);
      for (let j = 0; j < taken; j++) {
        source[places[j]] = (first + j) % d;
        placed[places[j]] = Math.sqrt(weight);
        squared[(first + j) % d] += count * n * weight;
      }
      first = (first + taken) % d;
      return { count, n, source, placed, rowSigns: Float32Array.from({ length: n }, () => sign(next)) };
    });
    const followed = Int32Array.from({ length: left }, (_, i) => (first + i) % d);
    for (const j of followed) squared[j] += d;
    for (const group of groups) {
      const side = group.count >= 16 ? group.count : 1;
      group.entries = Float32Array.from({ length: group.count * group.n }, (_, t) => {
        const i = Math.floor(t / side) % group.n;
        return group.placed[i] ? sign(next) * group.placed[i] / Math.sqrt(squared[group.source[i]]) : 0;
      });
    }
    const entries = Float32Array.from(followed, j => sign(next) * Math.sqrt(d / squared[j]));
    return hadamard(D, d, groups, followed, entries);
  },
};

// The network: 784 pixels, 200 hidden units, 10 classes. theta is W1 pixel by pixel, then b1, W2 class by class, b2.
class MLP {
  constructor(pixels, hidden, classes, batch) {
    Object.assign(this, { pixels, hidden, classes });
    this.b1 = pixels * hidden;
    this.W2 = this.b1 + hidden;
    this.b2 = this.W2 + classes * hidden;
    this.D = this.b2 + classes;
    this.h = new Float32Array(batch * hidden); // hidden units after the ReLU, image by image
    this.p = new Float32Array(batch * classes); // probabilities of the classes
    this.base = new Float64Array(hidden);
    this.dh = new Float32Array(hidden);
  }

  // PyTorch's usual start: uniform within 1/sqrt(number of inputs).
  start(next) {
    const theta0 = new Float32Array(this.D);
    const widths = [[0, this.W2, this.pixels], [this.W2, this.D, this.hidden]];
    for (const [from, to, inputs] of widths) {
      for (let i = from; i < to; i++) theta0[i] = (2 * next() - 1) / Math.sqrt(inputs);
    }
    return theta0;
  }

  // Forward. Fills h and p; gives the sum of the losses and the number of right answers. Of each image only the pixels
  // with ink are kept, in fours: the last are filled up by pixels with ink 0.
  forward(theta, digits, rows) {
    const { pixels, hidden, classes, b1, W2, b2, h, p, base } = this;
    const { starts, places, ink, labels, blank } = digits;
    // An empty pixel has the value `blank`, in every image: its part of the sums is computed once.
    base.fill(0);
    for (let i = 0, at = 0; i < pixels; i++) for (let u = 0; u < hidden; u++) base[u] += theta[at++];
    for (let u = 0; u < hidden; u++) base[u] = theta[b1 + u] + blank * base[u];
    let loss = 0, right = 0;
    for (let r = 0; r < rows.length; r++) {
      const row = rows[r], at = r * hidden, out = r * classes;
      for (let u = 0; u < hidden; u++) h[at + u] = base[u];
      for (let e = starts[row]; e < starts[row + 1]; e += 4) { // four pixels in one pass over the hidden units
        const a = places[e] * hidden, b = places[e + 1] * hidden, c = places[e + 2] * hidden, d = places[e + 3] * hidden;
        const ia = ink[e], ib = ink[e + 1], ic = ink[e + 2], id = ink[e + 3];
        for (let u = 0; u < hidden; u++) {
          h[at + u] += ia * theta[a + u] + ib * theta[b + u] + ic * theta[c + u] + id * theta[d + u];
        }
      }
      for (let u = 0; u < hidden; u++) if (h[at + u] < 0) h[at + u] = 0; // ReLU
      let best = 0;
      for (let c = 0; c < classes; c++) {
        let sum = theta[b2 + c];
        for (let u = 0, w = W2 + c * hidden; u < hidden; u++) sum += theta[w + u] * h[at + u];
        p[out + c] = sum;
        if (sum > p[out + best]) best = c;
      }
      const highest = p[out + best];
      let total = 0;
      for (let c = 0; c < classes; c++) total += Math.exp(p[out + c] - highest);
      loss += Math.log(total) + highest - p[out + labels[row]];
      for (let c = 0; c < classes; c++) p[out + c] = Math.exp(p[out + c] - highest) / total;
      if (best === labels[row]) right++;
    }
    return { loss, right };
  }

  // Backward, after forward on the same rows: the gradient of the mean loss.
  backward(theta, digits, rows, grad) {
    const { pixels, hidden, classes, b1, W2, b2, h, p, dh } = this;
    const { starts, places, ink, labels, blank } = digits;
    grad.fill(0);
    for (let r = 0; r < rows.length; r++) {
      const row = rows[r], at = r * hidden, out = r * classes;
      dh.fill(0);
      for (let c = 0; c < classes; c++) {
        const error = (p[out + c] - (c === labels[row] ? 1 : 0)) / rows.length;
        grad[b2 + c] += error;
        for (let u = 0, w = W2 + c * hidden; u < hidden; u++) {
          grad[w + u] += error * h[at + u];
          dh[u] += error * theta[w + u];
        }
      }
      for (let u = 0; u < hidden; u++) {
        if (h[at + u] === 0) dh[u] = 0; // where the ReLU was shut
        grad[b1 + u] += dh[u];
      }
      for (let e = starts[row]; e < starts[row + 1]; e += 4) {
        const a = places[e] * hidden, b = places[e + 1] * hidden, c = places[e + 2] * hidden, d = places[e + 3] * hidden;
        const ia = ink[e], ib = ink[e + 1], ic = ink[e + 2], id = ink[e + 3];
        for (let u = 0; u < hidden; u++) {
          const error = dh[u];
          grad[a + u] += ia * error;
          grad[b + u] += ib * error;
          grad[c + u] += ic * error;
          grad[d + u] += id * error;
        }
      }
    }
    for (let i = 0, a = 0; i < pixels; i++) for (let u = 0; u < hidden; u++) grad[a++] += blank * grad[b1 + u];
  }
}

// The optimisers: each gives a function that moves z by one step.
const OPTIMISERS = {
  sgd: () => (z, grad, rate) => {
    for (let j = 0; j < z.length; j++) z[j] -= rate * grad[j];
  },
  adam(d) {
    const m = new Float32Array(d), v = new Float32Array(d);
    let t = 0;
    return (z, grad, rate) => {
      t++;
      const step = rate / (1 - 0.9 ** t), correction = Math.sqrt(1 - 0.999 ** t);
      for (let j = 0; j < z.length; j++) {
        m[j] = 0.9 * m[j] + 0.1 * grad[j];
        v[j] = 0.999 * v[j] + 0.001 * grad[j] * grad[j];
        z[j] -= step * m[j] / (Math.sqrt(v[j]) / correction + 1e-8);
      }
    };
  },
};

// A training: theta0, P, z and an optimiser. Each call of step trains on one batch and gives its loss.
function training(net, digits, theta0, P, optimiser) {
  const z = new Float32Array(P.d), gradZ = new Float32Array(P.d);
  const theta = theta0.slice(), grad = new Float32Array(net.D);
  const move = OPTIMISERS[optimiser](P.d);
  return {
    net, theta0, P, z, theta,
    step(rows, rate) {
      const { loss } = net.forward(theta, digits, rows);
      net.backward(theta, digits, rows, grad);
      P.pull(grad, gradZ);
      move(z, gradZ, rate);
      P.write(theta0, z, theta);
      return loss / rows.length;
    },
  };
}

// z rounded to b bits: 2^b levels between -range and range, the range being the one that loses least. With 32 bits it
// stays as it is, and the levels are its own bits.
function round(z, bits) {
  if (bits === 32) return { range: 0, levels: new Int32Array(z.slice().buffer), z };
  const top = 2 ** bits, largest = z.reduce((most, value) => Math.max(most, Math.abs(value)), 0);
  let best = null;
  for (let share = 1; share > 0.15; share -= 0.02) {
    const range = Math.fround(share * largest) || 1;
    const levels = Int32Array.from(z, value =>
      Math.min(top - 1, Math.max(0, Math.floor((value / range + 1) * top / 2))));
    const rounded = unround(levels, range, bits);
    const lost = rounded.reduce((sum, value, j) => sum + (value - z[j]) ** 2, 0);
    if (!best || lost < best.lost) best = { range, levels, z: rounded, lost };
  }
  return best;
}

const unround = (levels, range, bits) => bits === 32 ? new Float32Array(levels.buffer)
  : Float32Array.from(levels, level => ((2 * level + 1) / 2 ** bits - 1) * range);
