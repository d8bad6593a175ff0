"use strict";
(() => {
  const report = JSON.parse(document.getElementById("report").textContent);
  const { circuit, data, seconds } = report;
  const COLOURS = ["var(--c0)", "var(--c1)", "var(--c2)", "var(--c3)", "var(--c4)", "var(--c5)", "var(--c6)"];

  // ---- small tools -------------------------------------------------------------------------------------------------
  const at = (id) => document.getElementById(id);
  const sum = (list, of) => list.reduce((total, item) => total + of(item), 0);
  const whole = (n) => Math.round(n).toLocaleString("en-US");
  const digits = (n, d = 3) => (n === 0 ? "0" : Number(n).toLocaleString("en-US", { maximumSignificantDigits: d }).replace("-", "−"));
  const percent = (part) => `${(100 * part).toFixed(1)} %`;
  const time = (s) => (s >= 120 ? `${Math.floor(s / 60)} min ${Math.round(s % 60)} s` : s >= 9.95 ? `${Math.round(s)} s` : `${s.toFixed(s < 0.1 ? 2 : 1)} s`);
  const brief = (s) => (s >= 120 ? `${(s / 60).toFixed(1)} min` : time(s));
  const power = (v, d = 1) => `2^${v < 0 ? "−" : ""}${Math.abs(v).toFixed(d)}`;
  const bytes = (n) => (n >= 1e9 ? `${(n / 1e9).toFixed(1)} GB` : n >= 1e6 ? `${(n / 1e6).toFixed(0)} MB` : `${(n / 1e3).toFixed(0)} kB`);

  function fill(node, attributes, children) {
    for (const [key, value] of Object.entries(attributes || {})) {
      if (key === "text") node.textContent = value;
      else if (value !== undefined && value !== null) node.setAttribute(key, value);
    }
    for (const child of children) if (child !== null && child !== undefined) node.append(child);
    return node;
  }
  const el = (tag, attributes, ...children) => fill(document.createElement(tag), attributes, children);
  const svg = (tag, attributes, ...children) => fill(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
  const tip = (text) => svg("title", { text });

  /** Draws now and whenever the width changes. */
  function chart(id, draw) {
    const box = at(id);
    let width = 0;
    const redraw = () => {
      if (box.clientWidth === width || box.clientWidth === 0) return;
      width = box.clientWidth;
      box.replaceChildren(...draw(width));
    };
    redraw();
    new ResizeObserver(redraw).observe(box);
  }
  const legend = (entries) => el("div", { class: "legend" }, ...entries.map(([name, colour]) => el("span", {}, el("i", { style: `background:${colour}` }), name)));

  // ---- what the data say, by tensor and by layer -------------------------------------------------------------------
  const variance = sum(data.error_sources, (s) => s.variance) || 1;
  const nodes = data.nodes.map((node, index) => {
    const sources = data.error_sources.filter((s) => s.node === index);
    const stepSeconds = (step) => (step.instruction === null ? 0 : seconds[step.instruction]);
    return {
      ...node, index, sources, stepSeconds,
      pbs: sum(node.steps, (s) => s.pbs), packs: sum(node.steps, (s) => s.packs), seconds: sum(node.steps, stepSeconds),
      error: sum(sources, (s) => s.variance) / variance,
    };
  });
  const groups = [...new Set(nodes.map((n) => n.group))];
  const ends = ["input", "head"];
  const names = [...groups.filter((g) => g === "input"), ...groups.filter((g) => !ends.includes(g)), ...groups.filter((g) => g === "head")];
  const layers = names.map((name) => {
    const members = nodes.filter((n) => n.group === name);
    const total = (of) => sum(members, of);
    return { name, members, pbs: total((n) => n.pbs), packs: total((n) => n.packs), seconds: total((n) => n.seconds), error: total((n) => n.error) };
  });
  const sequence = layers.flatMap((l) => l.members);

  /** Scalings and shifts that follow one another, as one. */
  function mergeAffine(functions) {
    const affine = (f) => (f.startsWith("affine(") ? f.slice(7, -1).split(",").map(Number) : null);
    return functions.reduce((done, f) => {
      const [last, next] = [affine(done[done.length - 1] || ""), affine(f)];
      if (!last || !next) return [...done, f];
      return [...done.slice(0, -1), `affine(${last[0] * next[0]},${last[1] * next[0] + next[1]})`];
    }, []);
  }

  /** The function of one variable as people write it. */
  function formula(label) {
    const number = (text) => digits(Number(text));
    return mergeAffine(label.split("|")).reduce((x, f) => {
      const [, name, list] = f.match(/^([a-z-]+)(?:\((.*)\))?$/) || [null, f, ""];
      const [a, b] = (list || "").split(",");
      switch (name) {
        case "affine": {
          const scaled = Number(a) === 1 ? x : Number(a) === -1 ? `−${x}` : `${number(a)}·${x}`;
          return Number(b) === 0 ? scaled : `(${scaled} ${Number(b) < 0 ? "−" : "+"} ${number(Math.abs(b))})`;
        }
        case "clamp": return Number(b) > 1e300 ? `max(${x}, ${number(a)})` : `clamp(${x}, ${number(a)}, ${number(b)})`;
        case "power": return `${/^[x(]/.test(x) || x.endsWith(")") ? x : `(${x})`}${{ 2: "²", 3: "³" }[a] || `^${a}`}`;
        case "reciprocal": return `1/${x}`;
        case "rsqrt": return `1/√${x}`;
        default: return `${name === "gelu" ? "GELU" : name === "relu" ? "ReLU" : name}(${x.replace(/^\((.*)\)$/, "$1")})`;
      }
    }, "x");
  }

  /** How a tensor is computed under encryption, in a sentence. */
  function how(node) {
    const step = (op) => node.steps.find((s) => s.op === op);
    const product = step("lut-product");
    if (product) {
      const each = product.slots === 1 ? "one product each" : `${product.slots} products each`;
      return `Product of two encrypted tensors: ${whole(node.pbs)} rotations of encrypted accumulators, ${each}.`;
    }
    if (step("pbs")) {
      return node.notes.some((n) => n.approximates) ? "Looked up: one bootstrap an element." : "Looked up exactly: one bootstrap an element, no approximation.";
    }
    if (step("encrypt")) return "Encrypted by the client, one ciphertext an element.";
    if (node.steps.length) return "Affine: one integer linear map, made where a look-up, a pack or the client reads it.";
    return "Affine or data movement: merged into the linear maps that read it; costs nothing.";
  }

  // ---- header ------------------------------------------------------------------------------------------------------
  const field = (path, text) => el("b", { "data-field": path, text });
  const tile = (value, label) => el("div", { class: "tile" }, value, el("span", { text: label }));
  function header() {
    const c = circuit;
    const error = c.predicted_output_error;
    const approximated = c.approximations.length ? `${c.approximations.length} functions are approximated` : "every function is looked up exactly";
    at("head").append(
      el("div", { class: "eyebrow", text: "thex report" }),
      el("h1", { text: c.model }),
      el("div", {}, el("span", { class: "chip", text: `profile ${c.profile}` }), " ", el("code", { class: "soft", title: c.digest, text: `circuit ${c.digest.slice(0, 16)}` })),
      el("p", { class: "summary", text: `One encrypted inference takes about ${time(c.estimated_seconds)} on this machine with ${c.threads} threads; ${approximated}.` }),
      el("div", { class: "tiles" },
        tile(field("pbs_count", whole(c.pbs_count)), "bootstraps (PBS)"),
        tile(field("pack_count", whole(c.pack_count)), "packed ciphertexts"),
        tile(el("b", { "data-field": "estimated_seconds", "data-value": c.estimated_seconds, text: time(c.estimated_seconds) }), `estimated, ${c.threads} threads`),
        tile(field("predicted_output_error", error === null ? "–" : digits(error, 3)), "output error, rms, modelled"),
        tile(el("b", { text: bytes(c.server_key_bytes) }), "server key on disk"),
        tile(field("security_bits", String(c.security_bits)), "bits of security")),
    );
  }

  // ---- charts ------------------------------------------------------------------------------------------------------
  /** Stacked horizontal bars: rows of { name, parts: [{ value, colour, label }], note }. */
  function bars(rows, width, right = 108) {
    const [left, height, gap] = [86, 22, 12];
    const most = Math.max(...rows.map((r) => sum(r.parts, (p) => p.value)), 1e-12);
    const scale = Math.max(width - left - right, 40) / most;
    const out = svg("svg", { width, height: rows.length * (height + gap) - gap, role: "img" });
    rows.forEach((row, i) => {
      const y = i * (height + gap);
      let x = left;
      out.append(svg("text", { x: 0, y: y + 15, text: row.name }));
      out.append(svg("rect", { x: left, y, width: most * scale, height, rx: 5, fill: "var(--track)" }));
      for (const part of row.parts.filter((p) => p.value > 0)) {
        out.append(svg("rect", { x, y, width: Math.max(part.value * scale - 1, 0.8), height, rx: 3, fill: part.colour }, tip(`${row.name}, ${part.label}`)));
        x += part.value * scale;
      }
      out.append(svg("text", { x: width, y: y + 15, "text-anchor": "end", class: "soft", text: row.note }));
    });
    return out;
  }

  function pbsChart(width) {
    const kinds = [["pbs", "look-ups"], ["lut-product", "rotations of products"]];
    const rows = layers.filter((l) => l.pbs > 0).map((layer) => ({
      name: layer.name, note: `${whole(layer.pbs)} · ${brief(layer.seconds)}`,
      parts: kinds.map(([op, label], i) => {
        const value = sum(layer.members, (n) => sum(n.steps.filter((s) => s.op === op), (s) => s.pbs));
        return { value, colour: COLOURS[i], label: `${label}: ${whole(value)}` };
      }),
    }));
    return [bars(rows, width, 128), legend(kinds.map(([, label], i) => [label, COLOURS[i]]))];
  }

  function timeChart(width) {
    const kinds = [["pbs", "look-ups"], ["lut-product", "products"], ["keyswitch", "keyswitches"], ["pack", "packs"], ["he-linear", "linear"]];
    const rows = kinds.map(([op, name], i) => {
      const value = sum(nodes, (n) => sum(n.steps.filter((s) => s.op === op), n.stepSeconds));
      return { name, note: `${brief(value)} · ${percent(value / (circuit.estimated_seconds || 1))}`, parts: [{ value, colour: COLOURS[i], label: time(value) }] };
    });
    return [bars(rows, width, 128)];
  }

  const sourceKinds = (() => {
    const totals = new Map();
    for (const s of data.error_sources) totals.set(s.kind, (totals.get(s.kind) || 0) + s.variance);
    return [...totals].sort((a, b) => b[1] - a[1]).map(([kind, value], i) => ({ kind, share: value / variance, colour: COLOURS[i % COLOURS.length] }));
  })();

  function errorChart(width) {
    const rows = layers.filter((l) => l.error > 0).map((layer) => ({
      name: layer.name, note: percent(layer.error),
      parts: sourceKinds.map(({ kind, colour }) => {
        const value = sum(layer.members, (n) => sum(n.sources.filter((s) => s.kind === kind), (s) => s.variance)) / variance;
        return { value, colour, label: `${kind}: ${percent(value)}` };
      }),
    }));
    return [bars(rows, width, 62), legend(sourceKinds.filter((k) => k.share >= 5e-4).map((k) => [`${k.kind} ${percent(k.share)}`, k.colour]))];
  }

  function errorText() {
    const error = circuit.predicted_output_error;
    at("error-lead").textContent = error === null ? "The noise model made no prediction."
      : `The noise model predicts that each output errs by ${digits(error, 4)} (root mean square) because of encryption; approximations are not in it.`;
    const rows = data.error_sources.slice(0, 8).flatMap((s) => [el("b", { text: percent(s.variance / variance) }), el("span", {}, `${s.kind} at `, el("code", { text: s.step }))]);
    at("error-top").append(el("div", { class: "top" }, ...rows));
  }

  /** Bands behind a plot over the sequence of tensors, one for each layer. */
  function bands(x, height) {
    let start = 0;
    return layers.flatMap((layer, i) => {
      const [a, b] = [x(start - 0.5), x(start + layer.members.length - 0.5)];
      start += layer.members.length;
      const band = svg("rect", { x: a, y: 0, width: Math.max(b - a, 0), height, fill: i % 2 ? "transparent" : "var(--track)", opacity: 0.5 });
      return b - a > 46 ? [band, svg("text", { x: (a + b) / 2, y: height + 18, "text-anchor": "middle", class: "soft", text: layer.name })] : [band];
    });
  }

  function noiseChart(width) {
    const series = [
      ["argument with the whole table to itself", COLOURS[0]],
      ["argument that multiplies several values", COLOURS[1]],
      ["output of a look-up or product, or an input", COLOURS[5]],
    ];
    const shown = (s) => s.noise_bits !== null && ["keyswitch", "pbs", "lut-product", "encrypt"].includes(s.op);
    const points = sequence.flatMap((n, i) => n.steps.filter(shown).map((s) => {
      const kind = s.op !== "keyswitch" ? 2 : s.positions < circuit.parameters.polynomial_size ? 1 : 0;
      return { i, bits: s.noise_bits, kind, text: `${s.name}: ${s.noise_bits.toFixed(1)} bits` };
    }));
    const [left, height] = [34, 230];
    const most = Math.min(Math.ceil(Math.max(...points.map((p) => p.bits), 10) / 4) * 4, 28);
    const x = (i) => left + ((i + 0.5) / sequence.length) * (width - left);
    const y = (bits) => height - (Math.min(Math.max(bits, 0), most) / most) * height;
    const out = svg("svg", { width, height: height + 24, role: "img" }, ...bands(x, height));
    for (let b = 0; b <= most; b += 4) {
      out.append(svg("line", { x1: left, x2: width, y1: y(b), y2: y(b), stroke: "var(--line)" }));
      out.append(svg("text", { x: left - 8, y: y(b) + 4, "text-anchor": "end", class: "soft", text: b }));
    }
    for (const p of points) {
      out.append(svg("line", { x1: x(p.i), x2: x(p.i), y1: y(0), y2: y(p.bits), stroke: series[p.kind][1], opacity: 0.22 }));
      out.append(svg("circle", { cx: x(p.i), cy: y(p.bits), r: 4, fill: series[p.kind][1] }, tip(p.text)));
    }
    return [out, legend(series)];
  }

  function rangesChart(width) {
    const shown = sequence.filter((n) => n.range && n.steps.length);
    const [line, left] = [20, Math.min(300, width * 0.36)];
    const right = width > 640 ? 170 : 0;
    const x = (u) => left + Math.min(Math.max(u, 0), 1) * (width - left - right);
    const out = svg("svg", { width, height: shown.length * line + (right ? 18 : 0), role: "img" });
    const top = right ? 18 : 0;
    if (right) out.append(svg("text", { x: width, y: 10, "text-anchor": "end", class: "soft", text: "width: least · median · most" }));
    shown.forEach((n, i) => {
      const [y, p] = [top + i * line, n.range.position];
      const label = n.name.length * 6.6 > left ? `…${n.name.slice(-Math.floor(left / 6.6) + 1)}` : n.name;
      const seen = `${n.name}: seen ${digits(n.range.seen[0])} to ${digits(n.range.seen[1])}, range ${digits(n.range.extent[0])} to ${digits(n.range.extent[1])}, ${n.range.channels} channels`;
      out.append(svg("text", { x: 0, y: y + 13, text: label }, tip(n.name)));
      out.append(svg("rect", { x: x(0), y: y + 4, width: x(1) - x(0), height: 11, rx: 4, fill: "var(--track)" }, tip(seen)));
      out.append(svg("rect", { x: x(p[0]), y: y + 6, width: Math.max(x(p[3]) - x(p[0]), 1), height: 7, rx: 3, fill: "var(--accent)", opacity: 0.3 }, tip(seen)));
      out.append(svg("rect", { x: x(p[1]), y: y + 6, width: Math.max(x(p[2]) - x(p[1]), 1), height: 7, rx: 3, fill: "var(--accent)", opacity: 0.85 }, tip(seen)));
      if (right) out.append(svg("text", { x: width, y: y + 13, "text-anchor": "end", class: "soft", text: n.range.width.map((w) => digits(w)).join(" · ") }));
    });
    return [out];
  }

  // ---- the graph ---------------------------------------------------------------------------------------------------
  const costliest = layers.reduce((a, b) => (b.pbs > a.pbs ? b : a), layers[0]);
  const unfolded = new Set([costliest.name]);
  const opened = new Set();
  const mostPbs = Math.max(...nodes.map((n) => n.pbs), 1);

  const cell = (text, kind = "") => el("span", { class: kind, text, title: text });
  function cells(item, name, shape, scale) {
    const bar = el("span", { class: "bar n" });
    if (item.pbs) bar.append(el("i", {}, el("u", { style: `width:${Math.max((100 * item.pbs) / scale, 1)}%` })), el("b", { text: whole(item.pbs) }));
    return [name, cell(shape, "soft"), bar, cell(item.packs ? whole(item.packs) : "", "n"), cell(item.seconds >= 0.005 ? brief(item.seconds) : "", "n"), cell(item.error >= 5e-4 ? percent(item.error) : "", "n")];
  }

  function layerRow(layer) {
    const name = el("span", { class: "name" }, el("span", { text: layer.name }), el("em", { text: layer.members.length === 1 ? "1 tensor" : `${layer.members.length} tensors` }));
    const row = el("button", { type: "button", class: "row layer", "data-layer": layer.name, "aria-expanded": unfolded.has(layer.name) }, ...cells(layer, name, "", circuit.pbs_count || 1));
    row.addEventListener("click", () => { toggle(unfolded, layer.name); drawGraph(); });
    return row;
  }

  function nodeRow(node) {
    const op = node.function ? formula(node.function) : node.op;
    const name = el("span", { class: "name", title: `${node.name}: ${op}` }, el("span", { text: node.name }), el("em", { text: op }));
    if (node.notes.some((n) => n.approximates)) name.append(el("span", { class: "chip warn", text: "approx." }));
    const quiet = node.steps.length ? "" : " quiet";
    const row = el("button", { type: "button", class: `row node${quiet}`, "data-node": node.index, "aria-expanded": opened.has(node.index) }, ...cells(node, name, node.shape.join("×"), mostPbs));
    row.addEventListener("click", () => openNode(node, row));
    row.addEventListener("mouseenter", () => highlight(node.index, true));
    row.addEventListener("mouseleave", () => highlight(node.index, false));
    return row;
  }
  const toggle = (set, key) => (set.has(key) ? set.delete(key) : set.add(key));
  const highlight = (index, on) => document.querySelectorAll(`#rows path[data-from="n${index}"], #rows path[data-to="n${index}"]`).forEach((p) => p.classList.toggle("hot", on));

  const pair = (a, b, text) => (text(a) === text(b) ? text(a) : `${text(a)} … ${text(b)}`);
  const weights = ([least, median, most]) => (least === most ? `${least}` : `${least} … ${most} (${median})`);
  function stepTable(node) {
    const cellsOf = (s) => {
      const error = sum(node.sources.filter((e) => e.step === s.name), (e) => e.variance) / variance;
      return [s.op, whole(s.elements), s.pbs ? whole(s.pbs) : "", s.packs ? whole(s.packs) : "", s.slots || "", s.delta_log2 ? pair(...s.delta_log2, power) : "",
        s.noise_bits === null ? "" : s.noise_bits.toFixed(1), s.weight_bits ? weights(s.weight_bits) : "", error >= 5e-4 ? percent(error) : "", node.stepSeconds(s) >= 5e-4 ? `${node.stepSeconds(s).toFixed(3)} s` : ""];
    };
    const heads = ["operation", "elements", "PBS", "packs", "slots", "Δ (turns a unit)", "bits", "weight bits (median)", "error", "time"];
    const row = (tag, texts) => el("tr", {}, ...texts.map((text, i) => el(tag, { class: i ? "n" : "", text })));
    return el("div", { class: "scroll" }, el("table", {}, el("thead", {}, row("th", heads)), el("tbody", {}, ...node.steps.map((s) => row("td", cellsOf(s))))));
  }

  /** Ranges of channels side by side: pale with margins, dark as seen. */
  function channels(range) {
    const [width, height] = [Math.min(Math.max(range.bars.length * 9, 40), 620), 92];
    const [lo, hi] = range.extent;
    const y = (v) => height - ((v - lo) / (hi - lo || 1)) * height;
    const each = width / range.bars.length;
    const out = svg("svg", { class: "channels", viewBox: `0 0 ${width} ${height}`, width, height, style: "max-width:100%", role: "img" });
    if (lo < 0 && hi > 0) out.append(svg("line", { x1: 0, x2: width, y1: y(0), y2: y(0), stroke: "var(--line)" }));
    range.bars.forEach(([a, b, c, d], i) => {
      const bar = (from, to, opacity) => svg("rect", { x: i * each + each * 0.15, y: y(to), width: each * 0.7, height: Math.max(y(from) - y(to), 0.7), rx: Math.min(each * 0.25, 2), fill: "var(--accent)", opacity }, tip(`${digits(c)} to ${digits(d)}, with margins ${digits(a)} to ${digits(b)}`));
      out.append(bar(a, b, 0.2), bar(c, d, 0.75));
    });
    return out;
  }

  function detail(node) {
    const list = el("dl");
    const add = (term, ...content) => list.append(el("dt", { text: term }), el("dd", {}, ...content));
    add("ONNX", el("code", { text: node.onnx.join(", ") || "–" }));
    add("computes", `${node.function ? formula(node.function) : node.op}, shape ${node.shape.join(" × ")}`);
    if (node.operands.length) add("from", el("code", { text: node.operands.map((o) => nodes[o].name).join(", ") }));
    add("under encryption", how(node));
    if (node.notes.length) {
      add("decided", el("ul", { class: "notes" }, ...node.notes.map((n) => el("li", {}, el("span", { class: n.approximates ? "chip warn" : "chip", text: n.pass }), " ", n.text))));
    }
    if (node.range) {
      const r = node.range;
      add("range", `${digits(r.extent[0])} to ${digits(r.extent[1])}; seen ${digits(r.seen[0])} to ${digits(r.seen[1])}`);
      add("by channel", `${whole(r.channels)} ${r.channels === 1 ? "channel" : "channels"}, width ${digits(r.width[0])} least, ${digits(r.width[1])} median, ${digits(r.width[2])} most`, channels(r));
    }
    const box = el("div", { class: "detail" }, list);
    if (node.steps.length) box.append(stepTable(node));
    return box;
  }

  /** Opens or closes a tensor's detail in place. */
  function openNode(node, row) {
    toggle(opened, node.index);
    row.setAttribute("aria-expanded", opened.has(node.index));
    if (opened.has(node.index)) row.after(detail(node));
    else row.nextElementSibling.remove();
    drawEdges();
  }

  let rows = [];
  let rowOf = new Map();
  function drawGraph() {
    const focus = document.activeElement && document.activeElement.dataset ? { ...document.activeElement.dataset } : {};
    const box = at("rows");
    rows = [];
    rowOf = new Map();
    box.replaceChildren(el("div", { class: "row head" }, ...["tensor", "shape", "PBS", "packs", "time", "error"].map((t, i) => el("span", { class: i > 1 ? "n" : "", text: t }))));
    for (const layer of layers) {
      const head = layerRow(layer);
      box.append(head);
      if (!unfolded.has(layer.name)) {
        layer.members.forEach((n) => rowOf.set(n.index, rows.length));
        rows.push({ element: head, key: layer.name, busy: layer.pbs > 0 });
        continue;
      }
      for (const node of layer.members) {
        const row = nodeRow(node);
        rowOf.set(node.index, rows.length);
        rows.push({ element: row, key: `n${node.index}`, busy: node.pbs > 0 });
        box.append(row);
        if (opened.has(node.index)) box.append(detail(node));
      }
    }
    drawEdges();
    const again = focus.layer ? box.querySelector(`[data-layer="${focus.layer}"]`) : focus.node ? box.querySelector(`[data-node="${focus.node}"]`) : null;
    if (again) again.focus({ preventScroll: true });
  }

  /** Each row's dot keeps a lane down to its last reader, as in a commit graph. */
  function drawEdges() {
    const box = at("rows");
    box.querySelector("svg.edges")?.remove();
    const readers = rows.map(() => new Set());
    for (const node of nodes) {
      for (const operand of node.operands) {
        const [from, to] = [rowOf.get(operand), rowOf.get(node.index)];
        if (from < to) readers[from].add(to);
      }
    }
    const until = [];
    const lane = rows.map((_, i) => {
      let free = until.findIndex((end) => end <= i);
      if (free < 0) free = until.push(0) - 1;
      until[free] = Math.max(...readers[i], i);
      return free;
    });
    const gutter = 34 + until.length * 13 + 14;
    box.style.setProperty("--gutter", `${gutter}px`);
    const x = (i) => gutter - 16 - lane[i] * 13;
    const y = (i) => rows[i].element.offsetTop + rows[i].element.offsetHeight / 2;
    const out = svg("svg", { class: "edges", width: gutter, height: box.offsetHeight });
    rows.forEach((row, i) => {
      for (const to of readers[i]) {
        const [x1, y1, x2, y2] = [x(i), y(i), x(to), y(to)];
        const bend = Math.min(20, (y2 - y1) / 2);
        const d = x1 === x2 ? `M${x1} ${y1}V${y2}` : `M${x1} ${y1}V${y2 - bend}C${x1} ${y2 - bend / 3} ${x2} ${y2 - bend / 1.5} ${x2} ${y2}`;
        out.append(svg("path", { d, "data-from": row.key, "data-to": rows[to].key }));
      }
    });
    rows.forEach((row, i) => out.append(svg("circle", { cx: x(i), cy: y(i), r: 4, class: row.busy ? "busy" : "" })));
    box.prepend(out);
  }

  // ---- decisions, passes, parameters -------------------------------------------------------------------------------
  function approximations() {
    const lines = data.passes.flatMap((pass) => pass.approximations.map((text) => ({ pass, text })));
    if (!lines.length) {
      at("approximations").append(el("p", { class: "lead", text: "Nothing: the profile looks every function up exactly. What is left is the noise of encryption and the rounding of weights and tables." }));
      return;
    }
    const why = "The profile asks for what is cheap under encryption in place of what is exact. THE-X gets the accuracy that this costs back by fine-tuning.";
    at("approximations").append(el("p", { class: "lead", text: why }), el("div", { class: "cards" }, ...lines.map(({ pass, text }) =>
      el("div", { class: "card" }, el("span", { class: "chip warn", title: pass.description, text: pass.name }), " ", text))));
  }

  function passTable() {
    const heads = [["pass"], ["nodes", "n"], ["time", "n"], ["what it counted"]];
    const rows = data.passes.map((p) => el("tr", {},
      el("td", {}, el("b", { text: p.name }), el("div", { class: "soft", text: p.description })),
      el("td", { class: "n", text: `${p.nodes[0]} → ${p.nodes[1]}` }),
      el("td", { class: "n", text: `${whole(p.milliseconds)} ms` }),
      el("td", { text: Object.entries(p.counters).filter(([, v]) => v > 0).map(([k, v]) => `${whole(v)} ${k}`).join(", ") || "–" })));
    at("pass-table").append(el("table", {}, el("thead", {}, el("tr", {}, ...heads.map(([text, kind]) => el("th", { class: kind, text })))), el("tbody", {}, ...rows)));
    for (const p of data.passes.filter((q) => q.notes.length)) {
      at("rewrite-log").append(el("h3", { text: p.name }), el("ul", {}, ...p.notes.map((text) => el("li", { text }))));
    }
  }

  function parameters() {
    const p = circuit.parameters;
    const decomposition = (d) => `2^${d.base_log} × ${d.level}`;
    const facts = [
      ["security", `${circuit.security_bits} bits`], ["LWE dimension n", whole(p.lwe_dimension)], ["GLWE dimension k", whole(p.glwe_dimension)],
      ["polynomial size N", whole(p.polynomial_size)], ["keyswitch", decomposition(p.keyswitch)], ["bootstrap", decomposition(p.bootstrap)],
      ["packing keyswitch", decomposition(p.packing)], ["noise at n", power(p.small_noise_log2)], ["noise at kN", power(p.big_noise_log2)],
      ["noise of a look-up's argument", power(circuit.noise_log2.argument)], ["noise of a look-up's output", power(circuit.noise_log2.bootstrap)],
      ["keyswitches", whole(circuit.keyswitch_count)], ["multiply-adds on ciphertexts", whole(circuit.multiply_adds)], ["server key", bytes(circuit.server_key_bytes)],
    ];
    at("parameter-table").append(el("div", { class: "facts" }, ...facts.map(([name, value]) => el("div", {}, el("span", { text: name }), value))));
    at("foot").append(el("p", { text: `thex ${report.thex} · circuit ${circuit.digest}. Seconds were measured when this page was made. Noise standard deviations are fractions of the torus; the security is tfhe's 132-bit curve for Gaussian noise.` }));
  }

  header();
  chart("chart-pbs", pbsChart);
  chart("chart-time", timeChart);
  chart("chart-error", errorChart);
  errorText();
  chart("chart-noise", noiseChart);
  chart("chart-ranges", rangesChart);
  drawGraph();
  window.addEventListener("resize", drawEdges);
  at("unfold").addEventListener("click", () => { layers.forEach((l) => unfolded.add(l.name)); drawGraph(); });
  at("fold").addEventListener("click", () => { unfolded.clear(); opened.clear(); drawGraph(); });
  approximations();
  passTable();
  parameters();
})();
