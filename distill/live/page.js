// The page of a run in progress: it asks for the state twice a second, and for a picture whenever the last one has come.
"use strict";

const element = (id) => document.getElementById(id);
const pause = (seconds) => new Promise((done) => setTimeout(done, 1000 * seconds));
const pose = { azimuth: 30, elevation: 15, distance: 3.2, scene: 0 };
const SMALL = 96, LARGE = 256;
let run = null, runs = 0, records = [], last = {}, gone = false, following = true;

async function ask(order) {
  const reply = await fetch(order, { method: "POST" });
  element("message").textContent = await reply.text();
}

function duration(seconds) {
  const whole = Math.round(seconds);
  if (whole < 60) return whole + " s";
  return whole < 3600 ? Math.round(whole / 60) + " min" : (whole / 3600).toFixed(1) + " h";
}

function describe(state) {
  const phase = state.paused && state.phase === "training" ? "paused" : state.phase;
  const parts = [phase];
  if (state.iterations) parts.push(`step ${state.step} of ${state.iterations}`);
  if (state.seconds && state.phase === "training") {
    parts.push(`${state.seconds.toPrecision(3)} s a step`);
    parts.push(`${duration(state.seconds * (state.iterations - state.step))} left`);
  }
  return parts.join(" \u00b7 ");
}

// Mean over a window about each point, a tenth of the curve wide, as on the report page.
function smooth(values) {
  const half = Math.floor(values.length / 20), sums = [0];
  for (const value of values) sums.push(sums[sums.length - 1] + value);
  return values.map((_, i) => {
    const start = Math.max(i - half, 0), end = Math.min(i + half + 1, values.length);
    return (sums[end] - sums[start]) / (end - start);
  });
}

function figureOf(name) {
  const id = "curve-" + name;
  if (element(id)) return element(id);
  const figure = document.createElement("figure");
  figure.className = "card";
  figure.id = id;
  figure.innerHTML = '<figcaption><strong></strong><span></span></figcaption><svg viewBox="0 0 300 100" ' +
    'preserveAspectRatio="none" role="img"><polyline class="raw"/><polyline class="mean"/></svg>' +
    '<div class="ends"><span></span><span></span><span></span></div>';
  figure.querySelector("strong").textContent = name;
  figure.querySelector("svg").setAttribute("aria-label", name + " over the steps");
  element("curves").append(figure);
  return figure;
}

function draw() {
  const names = new Set(records.flatMap((record) => Object.keys(record)));
  names.delete("step");
  for (const name of names) {
    const known = records.filter((record) => Number.isFinite(record[name]));
    if (known.length < 2) continue;
    const steps = known.map((record) => record.step), values = known.map((record) => record[name]);
    const low = Math.min(...values), high = Math.max(...values);
    const wide = steps[steps.length - 1] - steps[0] || 1, tall = high - low;
    const points = (series) => series.map((value, i) =>
      `${(300 * (steps[i] - steps[0]) / wide).toFixed(1)},${(tall ? 100 * (high - value) / tall : 50).toFixed(1)}`).join(" ");
    const figure = figureOf(name), ends = figure.querySelectorAll(".ends span");
    figure.querySelector(".raw").setAttribute("points", points(values));
    figure.querySelector(".mean").setAttribute("points", points(smooth(values)));
    figure.querySelector("figcaption span").textContent = "last " + values[values.length - 1].toPrecision(3);
    ends[0].textContent = "step " + steps[0];
    ends[1].textContent = `${low.toPrecision(3)} to ${high.toPrecision(3)}`;
    ends[2].textContent = "step " + steps[steps.length - 1];
  }
}

function chooseScenes(count) {
  const there = element("scenes");
  if (there.childElementCount === (count > 1 ? count : 0)) return;
  there.replaceChildren();
  for (let i = 0; count > 1 && i < count; i++) {
    const button = document.createElement("button");
    button.textContent = "Scene " + (i + 1);
    button.setAttribute("aria-pressed", String(i === pose.scene));
    button.addEventListener("click", () => {
      pose.scene = i;
      [...there.children].forEach((each, j) => each.setAttribute("aria-pressed", String(i === j)));
    });
    there.append(button);
  }
}

function showPreviews(steps) {
  element("sheet").hidden = !steps.length;
  if (!steps.length) return;
  const when = element("when");
  when.max = steps.length - 1;
  if (following) when.value = when.max;
  const step = steps[Math.min(when.value, steps.length - 1)], source = `preview?step=${step}&run=${runs}`;
  if (element("preview").getAttribute("src") !== source) element("preview").src = source;
  element("preview-step").textContent = "step " + step;
}

function show(state) {
  if (state.run !== run) {
    [run, runs, records, following, pose.scene] = [state.run, runs + 1, [], true, 0];
    element("curves").replaceChildren();
    element("scenes").replaceChildren();
  }
  last = state;
  records.push(...state.records);
  if (records.length > 1200) records = records.filter((_, i) => i % 2 || i === records.length - 1);
  const training = state.phase === "training";
  document.title = `${state.iterations ? Math.floor(100 * state.step / state.iterations) + "% " : ""}${state.prompt || "distill"}`;
  element("prompt").textContent = state.prompt || "distill";
  element("status").textContent = describe(state);
  element("progress").value = state.iterations ? state.step / state.iterations : 0;
  // Setting the same text again would have screen readers say it again.
  if (element("message").textContent !== state.message) element("message").textContent = state.message;
  element("pause").textContent = state.paused ? "Continue" : "Pause";
  for (const id of ["pause", "checkpoint", "stop"]) element(id).disabled = !training;
  if (training) chooseScenes(state.scenes);
  showPreviews(state.previews);
  if (state.records.length) draw();
}

async function follow() {
  for (let since = 0, failed = 0; ; ) {
    try {
      const state = await (await fetch(`state?run=${run ?? 0}&since=${since}`, { signal: AbortSignal.timeout(10000) })).json();
      show(state);
      [since, failed, gone] = [state.since, 0, false];
    } catch (error) {
      failed += 1;
    }
    if (failed === 6) {
      sayGone();
      [since, run] = [0, null];  // what answers next may be another process
    }
    await pause(gone ? 2 : 0.5);
  }
}

function sayGone() {
  gone = true;
  const over = ["finished", "ended"].includes(last.phase);
  if (!over) element("status").textContent = "the run does not answer; this page goes on asking";
  for (const id of ["pause", "checkpoint", "stop"]) element(id).disabled = true;
}

// Small pictures while the camera moves, and a large one where it rests and at every step that can be shown.
async function look() {
  for (let shown = "", size = 0, step = -1; ; ) {
    const wanted = JSON.stringify(pose), still = wanted === shown;
    if (gone || document.hidden || last.phase !== "training" || (still && size === LARGE && step === last.step)) {
      await pause(0.1);
      continue;
    }
    size = still ? LARGE : SMALL;
    try {
      const reply = await fetch("frame?" + new URLSearchParams({ ...pose, size }));
      if (!reply.ok) throw new Error(await reply.text());
      const before = element("look").src;
      step = Number(reply.headers.get("X-Step"));
      element("look").src = URL.createObjectURL(await reply.blob());
      if (before) URL.revokeObjectURL(before);
      shown = wanted;
      element("shown").textContent = "step " + step;
    } catch (error) {
      element("shown").textContent = error.message;
      await pause(1);
    }
  }
}

function orbit() {
  const stage = element("look");
  let held = null;
  const turn = (dx, dy) => {
    pose.azimuth = (((pose.azimuth - dx) % 360) + 540) % 360 - 180;
    pose.elevation = Math.min(89, Math.max(-89, pose.elevation + dy));
    tell();
  };
  const near = (factor) => { pose.distance = Math.min(10, Math.max(1.2, pose.distance * factor)); tell(); };
  const tell = () => {
    element("pose").textContent =
      `azimuth ${pose.azimuth.toFixed(0)}\u00b0, elevation ${pose.elevation.toFixed(0)}\u00b0, distance ${pose.distance.toFixed(1)}`;
  };
  stage.addEventListener("pointerdown", (event) => {
    if (!event.isPrimary) return;
    stage.setPointerCapture(event.pointerId);
    held = event;
  });
  stage.addEventListener("pointermove", (event) => {
    if (!held || event.pointerId !== held.pointerId) return;
    turn((event.clientX - held.clientX) * 0.5, (event.clientY - held.clientY) * 0.5);
    held = event;
  });
  for (const name of ["pointerup", "pointercancel"]) stage.addEventListener(name, () => { held = null; });
  stage.addEventListener("wheel", (event) => {
    event.preventDefault();
    near(Math.exp(event.deltaY * 0.001));
  }, { passive: false });
  stage.addEventListener("keydown", (event) => {
    const by = { ArrowLeft: [-10, 0], ArrowRight: [10, 0], ArrowUp: [0, 10], ArrowDown: [0, -10] }[event.key];
    if (by) turn(...by);
    else if (event.key === "+" || event.key === "-") near(event.key === "+" ? 0.9 : 1.1);
    else return;
    event.preventDefault();
  });
  tell();
}

element("pause").addEventListener("click", () => ask(last.paused ? "resume" : "pause"));
element("checkpoint").addEventListener("click", () => ask("checkpoint"));
element("stop").addEventListener("click", () => {
  if (confirm("Stop the run? It saves a checkpoint, and resume=true continues it.")) ask("stop");
});
element("when").addEventListener("input", (event) => {
  following = event.target.value === event.target.max;
  showPreviews(last.previews);
});
orbit();
follow();
look();
