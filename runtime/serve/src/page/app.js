// The page of `thex serve`. It reads the same API as every client, and writes text into the document only as text.
"use strict";

const view = document.getElementById("view");
const state = { token: sessionStorage.getItem("token") || "", stop: () => {}, circuits: [] };

// --- elements ---

function element(name, properties = {}, ...children) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(properties)) {
    if (key in node) node[key] = value; else node.setAttribute(key, value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

const text = (value) => document.createTextNode(String(value));
const clip = (value) => (value.length > 40 ? `${value.slice(0, 39)}…` : value);
const count = (value) => Number(value).toLocaleString("en-US");
const short = (digest) => digest.slice(0, 12);

function bytes(value) {
  const units = ["B", "kB", "MB", "GB"];
  let i = 0;
  while (value >= 1000 && i < units.length - 1) { value /= 1000; i += 1; }
  return `${i && value < 100 ? value.toFixed(1) : Math.round(value)} ${units[i]}`;
}

function duration(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  if (seconds < 60) return `${seconds < 10 ? seconds.toFixed(1) : Math.round(seconds)} s`;
  const minutes = Math.floor(seconds / 60);
  return minutes < 60 ? `${minutes} min ${Math.round(seconds % 60)} s` : `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

const time = (seconds) => (seconds ? new Date(seconds * 1000).toLocaleString("en-GB") : "–");

function table(columns, rows) {
  const cell = (kind, column, ...content) => element(kind, { className: column.number ? "number" : "" }, ...content);
  const head = element("tr", {}, ...columns.map((column) => cell("th", column, text(column.name))));
  const body = rows.map((row) => element("tr", row.attributes || {}, ...row.cells.map((content, i) =>
    cell("td", columns[i], content instanceof Node ? content : text(content)))));
  return element("div", { className: "scroll" }, element("table", {}, element("thead", {}, head), element("tbody", {}, ...body)));
}

const column = (name, number = false) => ({ name, number });
const card = (value, label, field) => element("div", { className: "card" }, element("b", { "data-field": field || "" }, text(value)), element("span", {}, text(label)));
const facts = (pairs) => element("dl", {}, ...pairs.flatMap(([name, value]) =>
  [element("dt", {}, text(name)), element("dd", {}, value instanceof Node ? value : text(value))]));
const bar = (value, most, label) => element("progress", { max: Math.max(most, 1), value, "aria-label": label });
const stateWord = (job) => element("span", { className: `state ${job.state}` }, text(job.state));

// --- the API ---

const headers = () => (state.token ? { Authorization: `Bearer ${state.token}` } : {});

async function request(path, options = {}) {
  const answer = await fetch(path, { ...options, headers: headers() });
  if (answer.ok) return answer;
  const body = await answer.json().catch(() => ({ message: `status ${answer.status}` }));
  throw Object.assign(new Error(body.message), { status: answer.status, code: body.code });
}

const read = async (path) => (await request(path)).json();

function complain(error) {
  const problem = document.getElementById("problem");
  problem.textContent = error.code ? `${error.code}: ${error.message}` : `The server does not answer (${error.message}).`;
  problem.hidden = false;
  document.getElementById("login").hidden = error.status !== 401;
}

function calm() {
  document.getElementById("problem").hidden = true;
  document.getElementById("login").hidden = true;
}

// Runs `work` now and again, until the page shows something else.
function repeat(work, milliseconds) {
  let timer = 0;
  let over = false;
  const turn = async () => {
    try { await work(); calm(); } catch (error) { if (!over) complain(error); }
    if (!over) timer = setTimeout(turn, milliseconds);
  };
  turn();
  return () => { over = true; clearTimeout(timer); };
}

// Follows a job by its events; `fetch` rather than EventSource, which cannot send a token.
function follow(id, tell) {
  const control = new AbortController();
  const listen = async () => {
    const answer = await fetch(`/v1/jobs/${id}/events`, { headers: headers(), signal: control.signal });
    if (!answer.ok) throw Object.assign(new Error((await answer.json()).message), { status: answer.status, code: "TX0601" });
    const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
    let rest = "";
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return false;
      const events = (rest + value).split("\n\n");
      rest = events.pop();
      for (const event of events) {
        const data = event.split("\n").find((line) => line.startsWith("data: "));
        if (data) tell(JSON.parse(data.slice(6)));
        if (event.startsWith("event: end")) return true;
      }
    }
  };
  (async () => {
    while (!control.signal.aborted) {
      try {
        if (await listen()) return;
        calm();
      } catch (error) {
        if (control.signal.aborted) return;
        complain(error);
        if (error.status) return;
      }
      await new Promise((wake) => setTimeout(wake, 1000));
    }
  })();
  return () => control.abort();
}

// --- what the page shows ---

const modelName = (digest) => state.circuits.find((c) => c.digest === digest)?.name || short(digest);

function modelsTable(circuits) {
  const columns = [column("model"), column("profile"), column("PBS", true), column("packs", true), column("modelled error", true), column("server key", true)];
  return table(columns, circuits.map((c) => ({
    attributes: { "data-model": c.digest },
    cells: [
      element("a", { href: `#/model/${c.digest}` }, text(c.name)), c.profile, count(c.pbs_count), count(c.pack_count),
      c.predicted_output_error === null ? "–" : c.predicted_output_error.toFixed(4), bytes(c.server_key_bytes),
    ],
  })));
}

function jobsTable(jobs) {
  if (!jobs.length) return element("p", { className: "empty" }, text("No jobs yet. Submit one: "), element("code", {}, text(`thex client --server ${location.origin} predict …`)));
  const columns = [column("job"), column("model"), column("state"), column("progress"), column("PBS/s", true), column("left", true), column("submitted")];
  return table(columns, jobs.map((job) => {
    const p = job.progress;
    const waits = job.position !== null ? ` (${job.position} before it)` : "";
    return {
      attributes: { "data-job": job.id },
      cells: [
        element("a", { href: `#/job/${job.id}` }, element("code", {}, text(job.id.length > 20 ? `${short(job.id)}…` : job.id))),
        modelName(job.circuit), element("span", {}, stateWord(job), text(waits)), bar(p.pbs_done, p.pbs_total, "progress"),
        p.pbs_per_second ? p.pbs_per_second.toFixed(0) : "–", job.state === "running" ? duration(p.seconds_left) : "–", time(job.created),
      ],
    };
  }));
}

function overview() {
  const models = element("div", { id: "models" });
  const jobs = element("div", { id: "jobs" });
  view.replaceChildren(element("h2", {}, text("Models")), models, element("h2", {}, text("Your jobs")), jobs);
  return repeat(async () => {
    [state.circuits] = [await read("/v1/circuits")];
    models.replaceChildren(modelsTable(state.circuits));
    jobs.replaceChildren(jobsTable(await read("/v1/jobs")));
  }, 1000);
}

function model(digest) {
  return repeatOnce(async () => {
    const circuit = await read(`/v1/circuits/${digest}`);
    const parts = [
      element("h1", {}, text(circuit.name)),
      element("div", { className: "cards" },
        card(count(circuit.pbs_count), "programmable bootstraps", "pbs"), card(count(circuit.pack_count), "packs", "packs"),
        card(circuit.predicted_output_error === null ? "–" : circuit.predicted_output_error.toFixed(4), "modelled output error, rms", "error"),
        card(`${circuit.security_bits} bits`, "security", "security"), card(bytes(circuit.server_key_bytes), "server key", "key")),
      facts([
        ["model", circuit.model], ["profile", circuit.profile], ["circuit", element("code", {}, text(circuit.digest))],
        ["inputs", circuit.inputs.map((p) => `${p.name}: ${count(p.elements)} ciphertexts`).join(", ")],
        ["outputs", circuit.outputs.map((p) => `${p.name}: ${count(p.elements)}`).join(", ")],
      ]),
      element("h2", {}, text("Layers")), layersTable(circuit),
      element("h2", {}, text("Approximations")),
      circuit.approximations.length
        ? element("ul", {}, ...circuit.approximations.map((line) => element("li", {}, text(line))))
        : element("p", { className: "empty" }, text("None: every function is looked up.")),
    ];
    if (circuit.report) parts.push(...reportParts(await read(`/v1/circuits/${digest}/report`)));
    view.replaceChildren(...parts);
  });
}

function layersTable(circuit) {
  const columns = [column("layer"), column("PBS", true), column("share"), column("packs", true), column("keyswitches", true)];
  return table(columns, circuit.layers.map((l) => ({
    attributes: { "data-layer": l.name },
    cells: [l.name, count(l.pbs), bar(l.pbs, circuit.pbs_count, `share of ${l.name}`), count(l.packs), count(l.keyswitches)],
  })));
}

function reportParts(report) {
  const cost = (node) => node.steps.reduce((sum, step) => sum + step.pbs, 0);
  const nodes = report.nodes.map((node) => ({ ...node, pbs: cost(node) })).filter((node) => node.pbs > 0);
  nodes.sort((a, b) => b.pbs - a.pbs);
  const most = nodes.length ? nodes[0].pbs : 1;
  const note = (n, one) => element("p", {}, element("code", {}, text(n.name)), text(` ${one.pass}: ${one.text}`));
  const notes = report.nodes.flatMap((n) => n.notes.map((one) => note(n, one)));
  const variance = report.error_sources.reduce((sum, source) => sum + source.variance, 0);
  return [
    element("h2", {}, text("Costliest tensors")),
    table([column("tensor"), column("operation"), column("shape"), column("PBS", true), column("")], nodes.slice(0, 15).map((n) => ({
      attributes: { "data-tensor": n.name },
      cells: [element("code", {}, text(n.name)), clip(n.function || n.op), n.shape.join("×"), count(n.pbs), bar(n.pbs, most, `share of ${n.name}`)],
    }))),
    element("h2", {}, text("Where the output error comes from")),
    table([column("step"), column("source"), column("share", true)], report.error_sources.slice(0, 15).map((s) => ({
      cells: [element("code", {}, text(s.step)), s.kind, `${(100 * s.variance / variance).toFixed(1)} %`],
    }))),
    element("h2", {}, text("Decisions of the compiler")),
    notes.length ? element("div", { id: "notes" }, ...notes) : element("p", { className: "empty" }, text("None to report.")),
  ];
}

function job(id) {
  const samples = [];
  const shown = element("div", { id: "job", className: "big" });
  const problem = (error) => complain(error);
  const act = (label, path, method, then) => element("button", {
    type: "button",
    onclick: () => request(path, { method }).then(then).catch(problem),
  }, text(label));
  view.replaceChildren(element("h1", {}, text(`Job ${id}`)), shown);
  const show = (status) => {
    const p = status.progress;
    if (status.state === "running") samples.push([Date.now(), p.pbs_per_second]);
    const final = !["queued", "running"].includes(status.state);
    const buttons = final
      ? [status.result ? act("Download the encrypted result", `/v1/jobs/${id}/result`, "GET", (answer) => save(answer, `${id}.ct`)) : null,
        act("Forget this job", `/v1/jobs/${id}`, "DELETE", () => { location.hash = "#/"; })]
      : [act("Cancel", `/v1/jobs/${id}/cancel`, "PUT", () => {})];
    shown.replaceChildren(...[
      element("p", {}, stateWord(status), text(status.position !== null ? `, ${status.position} jobs before it` : p.step ? `, at ${p.step}` : "")),
      bar(p.pbs_done, p.pbs_total, "progress"),
      element("div", { className: "cards" },
        card(`${count(p.pbs_done)} / ${count(p.pbs_total)}`, "programmable bootstraps", "pbs"),
        card(p.pbs_per_second ? p.pbs_per_second.toFixed(1) : "–", "PBS per second", "rate"),
        card(status.state === "running" ? duration(p.seconds_left) : "–", "left", "left"),
        card(status.started ? duration((status.finished || Date.now() / 1000) - status.started) : "–", final ? "from start to end" : "since it started", "elapsed")),
      samples.length > 1 ? chart(samples) : null,
      status.error ? element("p", { id: "failure" }, text(`${status.error.code}: ${status.error.message}`)) : null,
      element("div", { className: "buttons" }, ...buttons.filter(Boolean)),
      facts([
        ["model", element("a", { href: `#/model/${status.circuit}` }, text(modelName(status.circuit)))],
        ["submitted", time(status.created)], ["started", time(status.started)], ["finished", time(status.finished)],
        ["starts", status.starts > 1 ? `${status.starts}: it was resumed after a restart of the server` : status.starts],
        ["server key", element("code", {}, text(status.key))], ["input", element("code", {}, text(status.input))],
        ["result", status.result ? element("span", {}, element("code", {}, text(status.result.digest)), text(`, ${bytes(status.result.bytes)}`)) : "–"],
      ]),
    ].filter(Boolean));
  };
  let stop = () => {};
  const begin = async () => {
    if (!state.circuits.length) state.circuits = await read("/v1/circuits");
    calm();
    stop = follow(id, show);
  };
  begin().catch(complain);
  return () => stop();
}

// PBS per second over time.
function chart(samples) {
  const space = "http://www.w3.org/2000/svg";
  const svg = document.createElementNS(space, "svg");
  const line = document.createElementNS(space, "polyline");
  const [start, end] = [samples[0][0], samples[samples.length - 1][0]];
  const top = Math.max(...samples.map(([, rate]) => rate), 1e-9) * 1.15;
  const point = ([at, rate]) => `${(600 * (at - start) / Math.max(end - start, 1)).toFixed(1)},${(100 - 100 * rate / top).toFixed(1)}`;
  line.setAttribute("points", samples.map(point).join(" "));
  svg.setAttribute("viewBox", "0 0 600 100");
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("role", "img");
  svg.setAttribute("aria-label", "programmable bootstraps per second over time");
  svg.append(line);
  return svg;
}

async function save(answer, name) {
  const url = URL.createObjectURL(await answer.blob());
  element("a", { href: url, download: name }).click();
  URL.revokeObjectURL(url);
}

// Once, and again only while it fails.
function repeatOnce(work) {
  let stop = () => {};
  stop = repeat(async () => { await work(); stop(); }, 2000);
  return () => stop();
}

// --- routes ---

const routes = [
  [/^#\/model\/([0-9a-f]{64})$/, model],
  [/^#\/job\/([A-Za-z0-9._-]{1,64})$/, job],
];

function route() {
  state.stop();
  for (const [pattern, show] of routes) {
    const match = location.hash.match(pattern);
    if (match) { state.stop = show(match[1]); return; }
  }
  state.stop = overview();
}

async function health() {
  const shown = document.getElementById("health");
  try {
    const h = await (await fetch("/v1/health")).json();
    shown.textContent = `${h.status === "ok" ? "" : `${h.status}, `}${h.running} running, ${h.queued} waiting, version ${h.version}`;
  } catch {
    shown.textContent = "the server does not answer";
  }
  setTimeout(health, 2000);
}

document.getElementById("login").addEventListener("submit", (event) => {
  event.preventDefault();
  state.token = document.getElementById("token").value.trim();
  sessionStorage.setItem("token", state.token);
  route();
});
window.addEventListener("hashchange", route);
health();
route();
