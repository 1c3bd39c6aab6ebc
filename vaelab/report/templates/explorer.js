// The explorer: sliders over latents, labels or codes, and the picture that the model decodes from them.
// Reads the JSON of vaelab/report/explorer.py; computes decoders that vaelab/report/portable.py carried here.
(() => {
  "use strict";
  const holder = document.getElementById("explorer-data");
  const root = document.getElementById("explorer");
  if (!holder || !root) return;
  const data = JSON.parse(holder.textContent);
  const [channels, height, width] = data.shape;
  const FIRST = 10; // sliders that are shown before "Show all"

  // --- the decoder: activations are flat Float64Arrays [C, H, W], weights are the model's float32 ---------

  function floats(base64) {
    const text = atob(base64);
    const bytes = new Uint8Array(text.length);
    for (let i = 0; i < bytes.length; i++) bytes[i] = text.charCodeAt(i);
    const view = new DataView(bytes.buffer);
    return Float64Array.from({ length: bytes.length / 4 }, (_, i) => view.getFloat32(4 * i, true));
  }

  function erfc(x) { // relative error below 1.2e-7: Press et al., Numerical Recipes, 2nd edition, section 6.2
    const t = 1 / (1 + Math.abs(x) / 2);
    const terms = [0.17087277, -0.82215223, 1.48851587, -1.13520398, 0.27886807, -0.18628806, 0.09678418,
      0.37409196, 1.00002368, -1.26551223];
    const tail = t * Math.exp(terms.reduce((sum, term) => sum * t + term, 0) - x * x);
    return x < 0 ? 2 - tail : tail;
  }

  const ACTIVATIONS = {
    relu: (x) => (x > 0 ? x : 0),
    leakyrelu: (x, slope) => (x > 0 ? x : slope * x),
    elu: (x, slope) => (x > 0 ? x : slope * Math.expm1(x)),
    gelu: (x) => 0.5 * x * erfc(-x / Math.SQRT2),
    silu: (x) => x / (1 + Math.exp(-x)),
    tanh: (x) => Math.tanh(x),
  };

  const MEANS = { // of the likelihood, from a raw parameter
    identity: (x) => x,
    sigmoid: (x) => 1 / (1 + Math.exp(-x)),
    continuous_bernoulli: (x) => {
      const size = Math.abs(x);
      if (size < 0.1) return 0.5 + x / 12 - x ** 3 / 720;
      const above = -1 / Math.expm1(-size) - 1 / size;
      return x > 0 ? above : 1 - above;
    },
  };

  function linear({ inputs, outputs, weight, bias }, weights) {
    return (x) => {
      const y = new Float64Array(outputs);
      for (let o = 0, at = weight; o < outputs; o++, at += inputs) {
        let sum = bias === null ? 0 : weights[bias + o];
        for (let i = 0; i < inputs; i++) sum += weights[at + i] * x[i];
        y[o] = sum;
      }
      return y;
    };
  }

  function affine({ channels: count, scale, shift }, weights) {
    return (x) => {
      const each = x.length / count;
      return x.map((value, i) => value * weights[scale + Math.floor(i / each)] + weights[shift + Math.floor(i / each)]);
    };
  }

  // A convolution, or a transposed one. Output rows r, r + s, r + 2s, … of a transposed convolution with stride s
  // see the same taps of the kernel: each such phase is a plain convolution, and a plain one has one phase.
  // A phase is a list of taps, (input channel, row, column), as offsets into the padded input; four are added at
  // a time over the whole plane, for two output channels, which a browser's compiler makes fast whatever the plane.
  function convolution(layer, weights) {
    const { kind, inputs, outputs, kernel, stride, padding, from, to, weight, bias } = layer;
    const up = kind === "up";
    const steps = up ? stride : 1;
    const along = (axis) => Array.from({ length: steps }, (_, phase) => {
      const taps = [];
      for (let t = 0; t < kernel; t++) {
        const shift = up ? (phase + padding - t) / stride : t - padding;
        if (Number.isInteger(shift)) taps.push([t, shift]);
      }
      return { phase, taps, count: Math.ceil((to[axis] - phase) / steps) };
    });
    const axes = [along(0), along(1)];
    const before = Math.max(0, ...axes.flat().flatMap(({ taps }) => taps.map(([, shift]) => -shift)));
    const after = Math.max(0, ...axes.flatMap((axis, a) => axis.flatMap(({ taps, count }) =>
      taps.map(([, shift]) => count - 1 + shift - (from[a] - 1)))));
    const [rows, columns] = from.map((side) => side + before + after);
    const phases = axes[0].flatMap((down) => axes[1].map((across) => {
      const pairs = down.taps.flatMap(([ty, dy]) => across.taps.map(([tx, dx]) => [ty * kernel + tx, dy, dx]));
      const count = Math.ceil(inputs * pairs.length / 4) * 4; // what is left over has weight 0
      const offsets = new Int32Array(count);
      const values = new Float64Array(count * (outputs + outputs % 2));
      for (let i = 0, at = 0; i < inputs; i++) {
        for (const [t, dy, dx] of pairs) {
          offsets[at] = (i * rows + before + dy) * columns + before + dx;
          for (let o = 0; o < outputs; o++) {
            const place = up ? i * outputs + o : o * inputs + i;
            values[o * count + at] = weights[weight + place * kernel * kernel + t];
          }
          at++;
        }
      }
      return { down, across, count, offsets, values, area: (down.count - 1) * columns + across.count };
    }));
    const padded = new Float64Array(inputs * rows * columns);
    const sums = [new Float64Array(rows * columns), new Float64Array(rows * columns)];
    return (x) => {
      for (let i = 0; i < inputs * from[0]; i++) {
        const row = Math.floor(i / from[0]) * rows + before + i % from[0];
        padded.set(x.subarray(i * from[1], (i + 1) * from[1]), row * columns + before);
      }
      const y = new Float64Array(outputs * to[0] * to[1]);
      for (const { down, across, count, offsets, values, area } of phases) {
        for (let o = 0; o < outputs; o++) {
          const sum = sums[o % 2];
          if (o % 2 === 0) {
            sums.forEach((s) => s.fill(0, 0, area));
            addTaps(sums[0], sums[1], area, padded, offsets, values.subarray(o * count), count);
          }
          const first = bias === null ? 0 : weights[bias + o];
          for (let r = 0; r < down.count; r++) {
            let place = (o * to[0] + down.phase + r * steps) * to[1] + across.phase;
            for (let c = 0; c < across.count; c++, place += steps) y[place] = first + sum[r * columns + c];
          }
        }
      }
      return y;
    };
  }

  function addTaps(sum, next, area, input, offsets, values, count) { // values: of two output channels, [2, count]
    for (let t = 0; t < count; t += 4) {
      const a = values[t], b = values[t + 1], c = values[t + 2], d = values[t + 3];
      const e = values[count + t], f = values[count + t + 1], g = values[count + t + 2], h = values[count + t + 3];
      const i = offsets[t], j = offsets[t + 1], k = offsets[t + 2], l = offsets[t + 3];
      for (let n = 0; n < area; n++) {
        const p = input[i + n], q = input[j + n], r = input[k + n], s = input[l + n];
        sum[n] += a * p + b * q + c * r + d * s;
        next[n] += e * p + f * q + g * r + h * s;
      }
    }
  }

  function sequence(layers, weights) {
    const steps = layers.map((layer) => {
      if (layer.kind === "linear") return linear(layer, weights);
      if (layer.kind === "affine") return affine(layer, weights);
      if (layer.kind === "conv" || layer.kind === "up") return convolution(layer, weights);
      if (layer.kind === "residual") {
        const body = sequence(layer.layers, weights);
        return (x) => body(x).map((value, i) => value + x[i]);
      }
      const activation = ACTIVATIONS[layer.kind];
      return (x) => x.map((value) => activation(value, layer.slope));
    });
    return (x) => steps.reduce((value, step) => step(value), x);
  }

  // The decoder as a function of a code, and of a label if there is one: a mean image in [0, 1], not yet clamped.
  function makeDecoder({ layers, weights: base64, codes, labels, mean }) {
    const weights = floats(base64);
    const run = sequence(layers, weights);
    const entry = ({ start, size }, index) => weights.subarray(start + index * size, start + (index + 1) * size);
    const [low, high] = data.range;
    return (code, label) => {
      const context = labels ? [...entry(labels, label)] : [];
      let input = Float64Array.from([...code, ...context]);
      if (codes) { // a vector for each position of the map, and the label's in planes behind it
        const planes = codes.size + context.length;
        input = new Float64Array(planes * code.length);
        code.forEach((index, place) =>
          [...entry(codes, index), ...context].forEach((value, d) => (input[d * code.length + place] = value)));
      }
      return run(input).map((raw) => (MEANS[mean](raw) - low) / (high - low));
    };
  }

  // --- pictures -------------------------------------------------------------------------------------------

  function draw(canvas, values) { // a picture [C, H, W] in [0, 1]
    const picture = new ImageData(width, height);
    for (let i = 0; i < width * height; i++) {
      for (let c = 0; c < 3; c++) picture.data[4 * i + c] = 255 * values[(c % channels) * width * height + i];
      picture.data[4 * i + 3] = 255;
    }
    [canvas.width, canvas.height] = [width, height];
    canvas.getContext("2d").putImageData(picture, 0, 0);
  }

  function openSheet(sheet) { // draws its pictures, by number, once it is read
    const image = new Image();
    image.src = sheet.uri;
    const ready = image.decode();
    const [w, h] = [Math.floor(width / sheet.shrunk), Math.floor(height / sheet.shrunk)];
    const onto = (canvas, number) => ready.then(() => {
      if (Number(canvas.dataset.number ?? number) !== number) return; // another has been asked for since
      const [x, y] = [number % sheet.columns, Math.floor(number / sheet.columns)];
      [canvas.width, canvas.height] = [w, h];
      canvas.getContext("2d").drawImage(image, x * w, y * h, w, h, 0, 0, w, h);
    });
    return { ready, onto };
  }

  // --- the page -------------------------------------------------------------------------------------------

  function el(tag, properties = {}, ...children) {
    const element = Object.assign(document.createElement(tag), properties);
    for (const [key, value] of Object.entries(properties)) if (key.includes("-")) element.setAttribute(key, value);
    element.append(...children.filter((child) => child !== null));
    return element;
  }
  const button = (text, onclick) => el("button", { type: "button", className: "ex-button", onclick }, text);
  const canvas = (className, label) => {
    const made = el("canvas", { className, width, height, role: "img", "aria-label": label });
    made.getContext("2d", { willReadFrequently: true }); // small, and written by the processor
    made.style.aspectRatio = `${width} / ${height}`;
    return made;
  };
  const group = (title, ...children) =>
    el("div", { className: "ex-group", role: "group", "aria-label": title }, el("p", { className: "ex-title" }, title), ...children);
  const press = (buttons, index) => buttons.forEach((b, i) => b.setAttribute("aria-pressed", String(i === index)));
  const random = (below) => Math.floor(Math.random() * below);
  const normal = () => Math.sqrt(-2 * Math.log(1 - Math.random())) * Math.cos(2 * Math.PI * Math.random());
  const named = (label) => (data.names ? data.names[label] : String(label));

  const decode = data.decoder ? makeDecoder(data.decoder) : null;
  const originals = openSheet(data.originals);
  const made = data.made ? openSheet(data.made) : null;
  const state = { start: 0, code: [], base: [], label: 0, baseLabel: 0, tile: 0, position: 0 };
  const first = canvas("ex-picture", "Where the controls start");
  const second = canvas("ex-picture", "The decoded picture");
  const firstCaption = el("figcaption");
  const frame = el("div", { className: "ex-frame" }, second);
  let shown = null; // the picture in [0, 1] that was drawn last, of a live decoder
  let pending = 0;

  function show() {
    cancelAnimationFrame(pending);
    pending = 0;
    if (decode) {
      shown = decode(state.code, state.label);
      draw(second, shown);
      afterwards();
    } else {
      const number = state.start * data.made.per_start + state.tile;
      second.dataset.number = number;
      made.onto(second, number).then(afterwards);
    }
  }
  const later = () => (pending ||= requestAnimationFrame(show));
  let afterwards = () => {}; // what else is drawn from the decoded picture

  // From now on the controls start at this code; `start` is the number of a real image, or null.
  function begin(code, label, start, words) {
    Object.assign(state, { code: Array.from(code), base: Array.from(code), label, baseLabel: label, tile: 0 });
    state.start = start ?? 0;
    press(thumbs, start);
    firstCaption.textContent = words;
    if (start !== null) {
      first.dataset.number = start;
      originals.onto(first, start);
    } else {
      first.dataset.number = -1;
      draw(first, decode(code, label));
    }
    refresh();
  }
  function reset() {
    Object.assign(state, { code: [...state.base], label: state.baseLabel, tile: 0 });
    refresh();
  }
  function refresh() {
    controls.forEach((control) => control());
    later();
  }
  const controls = []; // each brings a control in line with the state

  const fromImage = (i) => begin(data.starts[i], data.labels ? data.labels[i] : 0, i, "a real image");
  const thumbs = data.starts.map((_, i) => {
    const label = data.labels ? `, ${named(data.labels[i])}` : "";
    const small = canvas("ex-thumb", "");
    originals.onto(small, i);
    return el("button", { type: "button", className: "ex-choice", onclick: () => fromImage(i), "aria-label": `Start from image ${i + 1}${label}` }, small);
  });

  function labelButtons() {
    const choose = (k) => {
      if (!decode) state.code = [...state.base];
      Object.assign(state, { label: k, tile: 1 + k });
      refresh();
    };
    const buttons = data.names.map((name, k) => button(name, () => choose(k)));
    controls.push(() => press(buttons, state.label));
    return group("Label, with the same z", el("div", { className: "ex-buttons" }, ...buttons));
  }

  function sliders() {
    const offset = 1 + (data.conditional ? data.names.length : 0); // pictures of a start before those of its sliders
    const rows = data.dimensions.map(({ index, name: axis, measure, use, unused, low, high, step }, place) => {
      const id = `ex-z${index}`;
      const input = el("input", { type: "range", id, min: low, max: high, step });
      const output = el("output", { htmlFor: id, "aria-live": "off" });
      input.addEventListener("input", () => {
        if (!decode) Object.assign(state, { code: [...state.base], label: state.baseLabel });
        if (!decode) state.tile = offset + place * Math.round((high - low) / step + 1) + Math.round((input.valueAsNumber - low) / step);
        state.code[index] = Math.fround(input.valueAsNumber);
        refresh();
      });
      controls.push(() => {
        const value = state.code[index];
        if (input.valueAsNumber !== value) input.value = value;
        output.textContent = value.toFixed(2);
      });
      const how = unused ? "not used" : `${measure} ${use.toFixed(2)}`;
      const name = el("label", { htmlFor: id }, el("b", {}, axis), el("small", {}, how));
      return el("div", { className: unused ? "ex-slider ex-unused" : "ex-slider" }, name, input, output);
    });
    rows.slice(FIRST).forEach((row) => (row.hidden = true));
    const more = button(`Show all ${rows.length}`, () => {
      const open = more.getAttribute("aria-expanded") !== "true";
      rows.slice(FIRST).forEach((row) => (row.hidden = !open));
      more.setAttribute("aria-expanded", String(open));
      more.textContent = open ? `Show the first ${FIRST}` : `Show all ${rows.length}`;
    });
    more.setAttribute("aria-expanded", "false");
    const order = data.dimensions.some(({ measure }) => measure === "KL") ? "the highest KL (nats, mean over images) first" : "the widest spread over images (sd) first";
    return group(`Latent dimensions, ${order}`, ...rows, rows.length > FIRST ? more : null);
  }

  function codeMap() {
    const [rows, columns] = data.map;
    const positions = decode ? state.code.map((_, i) => i) : data.made.positions;
    const place = () => positions.indexOf(state.position);
    const last = (decode ? data.codes : data.made.codes[0].length) - 1;
    // Of pictures made beforehand, the slider's values stand for some codes of each position.
    const codeOf = (value) => (decode ? value : data.made.codes[place()][value]);
    const valueOf = (code) => (decode ? code : Math.max(0, data.made.codes[place()].indexOf(code)));
    const scale = 560 / Math.max(width, height);
    const map = el("canvas", { className: "ex-map", tabIndex: 0, width: Math.round(width * scale), height: Math.round(height * scale), role: "slider",
      "aria-label": "Position in the map of codes", "aria-valuemin": 0, "aria-valuemax": positions.length - 1 });
    const mark = el("div", { className: "ex-mark" });
    frame.append(mark);
    const range = el("input", { type: "range", id: "ex-code", min: 0, max: last, step: 1 });
    const number = el("input", { type: "number", id: "ex-number", min: 0, max: last, step: 1, "aria-label": "Code, as a number", hidden: !decode });
    const where = el("label", { htmlFor: "ex-code" });
    const fromCentre = (i) => Math.hypot(Math.floor(i / columns) - (rows - 1) / 2, (i % columns) - (columns - 1) / 2);
    state.position = positions.reduce((best, i) => (fromCentre(i) < fromCentre(best) ? i : best));

    const put = (value) => {
      if (!Number.isFinite(value)) return;
      const chosen = Math.min(last, Math.max(0, Math.round(value)));
      if (!decode) state.code = [...state.base];
      if (!decode) state.tile = 1 + place() * (last + 1) + chosen;
      state.code[state.position] = codeOf(chosen);
      refresh();
    };
    const select = (position) => {
      state.position = position;
      if (!decode) reset(); // a picture made beforehand has one code changed
      controls.forEach((control) => control());
      afterwards();
    };
    range.addEventListener("input", () => put(range.valueAsNumber));
    const used = () => (number.value = state.code[state.position]); // in place of what was typed
    number.addEventListener("input", () => {
      put(number.valueAsNumber);
      if (number.valueAsNumber > last) used();
    });
    number.addEventListener("change", used);
    number.addEventListener("blur", used);
    map.addEventListener("click", (event) => {
      const box = map.getBoundingClientRect();
      const column = Math.min(columns - 1, Math.floor((event.clientX - box.left) / box.width * columns));
      const row = Math.min(rows - 1, Math.floor((event.clientY - box.top) / box.height * rows));
      if (positions.includes(row * columns + column)) select(row * columns + column);
    });
    const moves = { ArrowRight: [0, 1], ArrowLeft: [0, -1], ArrowDown: [1, 0], ArrowUp: [-1, 0] };
    map.addEventListener("keydown", (event) => {
      if (!moves[event.key]) return;
      event.preventDefault();
      let [row, column] = [Math.floor(state.position / columns), state.position % columns];
      do { // to the next position that has pictures
        row += moves[event.key][0];
        column += moves[event.key][1];
        if (row < 0 || column < 0 || row >= rows || column >= columns) return;
      } while (!positions.includes(row * columns + column));
      select(row * columns + column);
    });

    controls.push(() => {
      const [row, column] = [Math.floor(state.position / columns), state.position % columns];
      const code = state.code[state.position];
      const words = `Row ${row + 1}, column ${column + 1}: code ${code}`;
      where.textContent = words;
      range.value = valueOf(code);
      range.setAttribute("aria-valuetext", `code ${code}`);
      if (document.activeElement !== number) number.value = code;
      map.setAttribute("aria-valuenow", place());
      map.setAttribute("aria-valuetext", words);
      Object.assign(mark.style, { left: `${100 * column / columns}%`, top: `${100 * row / rows}%`, width: `${100 / columns}%`, height: `${100 / rows}%` });
    });
    afterwards = () => {
      const context = map.getContext("2d");
      const [w, h] = [map.width / columns, map.height / rows];
      context.imageSmoothingEnabled = false;
      context.drawImage(second, 0, 0, map.width, map.height);
      context.font = `600 ${Math.min(40, Math.min(w, h) * 0.34)}px system-ui, sans-serif`;
      Object.assign(context, { textAlign: "center", textBaseline: "middle", lineJoin: "round" });
      state.code.forEach((code, i) => {
        const [x, y] = [(i % columns) * w, Math.floor(i / columns) * h];
        const off = !positions.includes(i);
        context.fillStyle = off ? "rgb(128 128 128 / 0.55)" : `hsl(${(code * 137.508) % 360} 75% 50% / 0.4)`;
        context.fillRect(x + 1, y + 1, w - 2, h - 2);
        if (off || Math.min(w, h) < 40) return;
        Object.assign(context, { strokeStyle: "rgb(0 0 0 / 0.75)", lineWidth: 4, fillStyle: "#fff" });
        context.strokeText(code, x + w / 2, y + h / 2);
        context.fillText(code, x + w / 2, y + h / 2);
      });
      const [x, y] = [(state.position % columns) * w, Math.floor(state.position / columns) * h];
      for (const [colour, line] of [["#000", 8], ["#ffb000", 4]]) {
        Object.assign(context, { strokeStyle: colour, lineWidth: line });
        context.strokeRect(x + 4, y + 4, w - 8, h - 8);
      }
    };
    // What a fitted prior says of the chosen position, as long as all others are those of the real image.
    const chances = () => {
      const others = state.code.every((code, i) => i === state.position || code === state.base[i]);
      return (others && data.choices[state.start]?.[place()]) || [];
    };
    const most = Math.max(0, ...data.choices.flat().map((codes) => codes.length));
    const chosen = Array.from({ length: most }, (_, i) => button("", () => put(valueOf(chances()[i][0]))));
    const resample = button("Resample here", () => {
      let left = Math.random() * chances().reduce((sum, [, p]) => sum + p, 0);
      put(valueOf((chances().find(([, p]) => (left -= p) <= 0) || chances().at(-1))[0]));
    });
    const prior = group("Here, given all other codes, by the fitted prior (of the 16 codes that are most probable after those before)",
      el("div", { className: "ex-buttons" }, resample, ...chosen));
    controls.push(() => {
      const known = chances();
      prior.hidden = !known.length;
      chosen.forEach((choice, i) => {
        choice.hidden = i >= known.length;
        if (known[i]) choice.textContent = `code ${known[i][0]}: ${(100 * known[i][1]).toFixed(known[i][1] < 0.1 ? 1 : 0)} %`;
      });
      press(chosen, known.findIndex(([code]) => code === state.code[state.position]));
    });
    const everywhere = (code) => {
      state.code = state.code.map(code);
      refresh();
    };
    const buttons = [
      button("Random code here", () => put(random(data.codes))),
      button("This code everywhere", () => everywhere(() => state.code[state.position])),
      button("Random codes", () => everywhere(() => random(data.codes))),
    ];
    return group(
      `Map of codes${data.level ? ` of the first level, ${data.level}` : ""}: choose a cell, then its code`,
      map,
      el("div", { className: "ex-code" }, where, range, number),
      decode ? el("div", { className: "ex-buttons" }, ...buttons) : null,
      most ? prior : null,
    );
  }

  function about() {
    if (decode) {
      return `Decoded in this page by the model's own decoder, ${data.decoder.count.toLocaleString("en")} weights.`;
    }
    const one = data.map ? "one position at a time can have another code" : "one slider at a time can move, the others go back to the start";
    const shrunk = data.made.shrunk > 1 ? ` They are made ${data.made.shrunk} times smaller.` : "";
    return `The decoder is not in the page: it is ${data.why}. These pictures were decoded beforehand: ${one}.${shrunk}`;
  }

  function startButtons() {
    if (!decode || data.map) return [];
    const centre = button(data.standard ? "Prior’s mean" : "Mean code", () =>
      begin(data.centre, state.label, null, data.standard ? "the prior’s mean" : "the mean code"));
    if (!data.standard) return [centre];
    return [centre, button("Random draw", () => begin(data.centre.map(() => Math.fround(normal())), state.label, null, "a random draw"))];
  }

  state.code = data.starts[0];
  const parts = [data.conditional ? labelButtons() : null, data.map ? codeMap() : sliders()];
  root.classList.add("ex");
  root.append(
    el("div", { className: "ex-stage" },
      el("figure", {}, el("div", { className: "ex-frame" }, first), firstCaption),
      el("figure", {}, frame, el("figcaption", {}, "decoded"))),
    el("div", { className: "ex-controls" },
      group("Start", thumbs.length > 1 ? el("div", { className: "ex-thumbs" }, ...thumbs) : null,
        el("div", { className: "ex-buttons" }, ...startButtons(), button("Reset", reset))),
      ...parts.filter((part) => part),
      el("p", { className: "ex-about" }, about())),
  );
  fromImage(0);

  window.vaelabExplorer = { // for tests
    ready: Promise.all([originals.ready, made?.ready]).then(() => show()),
    show,
    values: () => shown,
    code: () => [...state.code],
    pixels: () => {
      const read = second.getContext("2d").getImageData(0, 0, second.width, second.height).data;
      return Array.from(read).filter((_, i) => i % 4 < channels);
    },
  };
})();
