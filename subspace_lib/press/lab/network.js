// The worker of a network in a link: z in b bits a number, as letters that an address can hold, and back.
"use strict";

const HEADER = 14; // bytes of a file for seed, d, bits, family, range

Object.assign(JOBS, {
  // The network at hand with z rounded to each number of bits.
  async roundings({ choices, mine }) {
    const { net, theta0, P, z } = network, theta = new Float32Array(net.D), found = [];
    for (const bits of choices) {
      const rounded = round(z, bits);
      P.write(theta0, rounded.z, theta);
      const read = await test(net, theta, mine);
      if (!read) return { ended: "stopped" };
      found.push({
        bits, bytes: HEADER + Math.ceil(P.d * bits / 8), accuracy: read.accuracy,
        text: written(rounded, bits), mark: fingerprint(theta),
      });
    }
    return { ended: "done", found };
  },

  // The network of a link: seeds give theta0 and P, the text gives z.
  async link({ spec, bits, text, mine, tell }) {
    const z = wordOf(text, bits, spec.d);
    if (!z) return { ended: "damaged" };
    const run = network = untrained(spec);
    run.z.set(z);
    run.P.write(run.theta0, run.z, run.theta);
    const read = await test(run.net, run.theta, mine);
    if (!read) return { ended: "stopped" };
    tell({ ...read, moved: moved(run) });
    return { ended: "done", accuracy: read.accuracy, mark: fingerprint(run.theta) };
  },
});

// Rounded z in letters: 4 bytes of range, then b bits a number, as base64 that an address can hold.
function written({ range, levels }, bits) {
  const bytes = new Uint8Array(4 + Math.ceil(levels.length * bits / 8));
  new DataView(bytes.buffer).setFloat32(0, range);
  levels.forEach((level, j) => {
    for (let b = 0, at = 32 + j * bits; b < bits; b++, at++) bytes[at >> 3] |= ((level >> b) & 1) << (at & 7);
  });
  return btoa(String.fromCharCode(...bytes)).replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "");
}

// And back; null if it is not what `written` writes.
function wordOf(text, bits, d) {
  let bytes;
  try {
    bytes = Uint8Array.from(atob(text.replaceAll("-", "+").replaceAll("_", "/")), letter => letter.charCodeAt(0));
  } catch {
    return null;
  }
  if (bytes.length !== 4 + Math.ceil(d * bits / 8)) return null;
  const levels = new Int32Array(d);
  levels.forEach((_, j) => {
    for (let b = 0, at = 32 + j * bits; b < bits; b++, at++) levels[j] |= ((bytes[at >> 3] >> (at & 7)) & 1) << b;
  });
  const z = unround(levels, new DataView(bytes.buffer).getFloat32(0), bits);
  return z.every(value => Math.abs(value) < 1e6) ? z : null;
}

// One word for all bits of theta (FNV-1a): two networks with the same word are the same, bit for bit.
function fingerprint(theta) {
  let mark = 0x811c9dc5;
  for (const byte of new Uint8Array(theta.buffer)) mark = Math.imul(mark ^ byte, 0x01000193);
  return (mark >>> 0).toString(16).padStart(8, "0");
}
