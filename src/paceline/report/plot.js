"use strict";
// Zoom, pointer and keys for the plots that report/plots.py drew. Curves stay as they are: a zoom is another viewBox.
(() => {
  const SIDE = 1000, MOST_TICKS = 7;
  const CLOCK_STEPS = [1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 28800, 86400];
  const QUANTILES = [1, 2, 10, 100, 1e3, 1e4, 1e5, 1e6];
  const numbers = (text) => (text ? text.split(",").map((v) => (v === "" ? null : Number(v))) : []);
  const digits = (v, n) => Number(v.toPrecision(n));
  const share = (axis, v) =>
    axis.log ? Math.log(Math.max(v, axis.low) / axis.low) / Math.log(axis.high / axis.low) : (v - axis.low) / (axis.high - axis.low);
  const valueAt = (axis, s) => (axis.log ? axis.low * (axis.high / axis.low) ** s : axis.low + s * (axis.high - axis.low));

  function ticks(axis) {
    const { low, high, unit } = axis;
    if (unit === "q") return QUANTILES.filter((v) => v >= low && v <= high);
    if (axis.log && high / low >= 8) {
      let all = [];
      for (let e = Math.floor(Math.log10(low)); e <= Math.ceil(Math.log10(high)); e++) all.push(10 ** e, 2 * 10 ** e, 5 * 10 ** e);
      all = all.filter((v) => v >= low && v <= high);
      if (all.length > MOST_TICKS) all = all.filter((v) => Math.abs(Math.log10(v) - Math.round(Math.log10(v))) < 1e-9);
      const every = Math.ceil(all.length / MOST_TICKS);
      return all.filter((_, i) => i % every === 0);
    }
    const least = (high - low) / MOST_TICKS;
    const power = 10 ** Math.floor(Math.log10(least));
    let step = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= least * (1 - 1e-9));
    if (unit === "t" && least > 1) step = CLOCK_STEPS.find((s) => s >= least) || 86400 * Math.ceil(least / 86400);
    const found = [];
    for (let i = Math.ceil(low / step - 1e-9); i * step <= high * (1 + 1e-9); i++) found.push(digits(i * step, 10));
    return found;
  }

  function clock(v, most) {
    if (most < 120) return `${digits(v, 6)} s`;
    const whole = Math.round(v), two = (n) => String(n).padStart(2, "0");
    return most >= 3600
      ? `${Math.floor(whole / 3600)}:${two(Math.floor(whole / 60) % 60)}:${two(whole % 60)}`
      : `${Math.floor(whole / 60)}:${two(whole % 60)}`;
  }

  function text(axis, v, n = 6) {
    if (axis.unit === "t") return clock(v, axis.most);
    if (axis.unit === "s") return v >= 1 || v === 0 ? `${digits(v, n)} s` : `${digits(v * 1000, n)} ms`;
    if (axis.unit === "q") return `${digits(100 - 100 / v, 6)} %`;
    if (axis.unit === "%") return `${digits(v * 100, n)} %`;
    return digits(v, n).toLocaleString("en") + (axis.unit === "MB" ? " MB" : axis.unit);
  }

  class Plot {
    constructor(figure) {
      this.figure = figure;
      const d = figure.dataset;
      const axis = (name) => ({ low: +d[name + "low"], high: +d[name + "high"], most: +d[name + "high"], log: d[name + "log"] === "1", unit: d[name + "unit"] });
      this.x = axis("x");
      this.y = axis("y");
      this.shown = { x: this.x, y: this.y };
      this.area = figure.querySelector(".area");
      this.svg = this.area.querySelector("svg");
      this.grid = this.svg.querySelector(".grid path");
      this.xs = figure.querySelector(".xs");
      this.ys = figure.querySelector(".ys");
      this.first = { grid: this.grid.getAttribute("d"), xs: this.xs.innerHTML, ys: this.ys.innerHTML };
      this.layers = [...this.svg.querySelectorAll("path[data-y]")].map((path) => ({
        label: path.dataset.label, css: path.getAttribute("class"), bars: path.classList.contains("bars"),
        xs: numbers(path.dataset.x ?? d.x), ys: numbers(path.dataset.y),
      }));
      const add = (name) => this.area.appendChild(Object.assign(document.createElement("div"), { className: name, hidden: true }));
      this.cursor = add("cursor");
      this.range = add("range");
      this.tip = add("tip");
      this.tip.setAttribute("aria-live", "polite");
      this.place = null; // index into the first layer
      this.listen();
    }

    // --- what is shown

    show(low, high) {
      const whole = low <= this.x.low && high >= this.x.high;
      if (whole) {
        this.shown = { x: this.x, y: this.y };
        this.svg.setAttribute("viewBox", `0 0 ${SIDE} ${SIDE}`);
        this.grid.setAttribute("d", this.first.grid);
        this.xs.innerHTML = this.first.xs;
        this.ys.innerHTML = this.first.ys;
      } else {
        const x = { ...this.x, low, high };
        const y = this.fitted(low, high);
        this.shown = { x, y };
        const left = share(this.x, low) * SIDE, right = share(this.x, high) * SIDE;
        const top = (1 - share(this.y, y.high)) * SIDE, bottom = (1 - share(this.y, y.low)) * SIDE;
        this.svg.setAttribute("viewBox", `${left} ${top} ${right - left} ${bottom - top}`);
        const px = (v) => share(this.x, v) * SIDE, py = (v) => (1 - share(this.y, v)) * SIDE;
        const tx = ticks(x), ty = ticks(y);
        this.grid.setAttribute("d", ty.map((v) => `M${left},${py(v)}H${right}`).join("") + tx.map((v) => `M${px(v)},${top}V${bottom}`).join(""));
        this.label(this.xs, x, tx, "left");
        this.label(this.ys, y, ty, "bottom");
      }
      for (const mark of this.area.querySelectorAll(".mark")) {
        const isV = mark.classList.contains("v"), axis = isV ? this.shown.x : this.shown.y;
        const s = share(axis, +mark.dataset.at);
        mark.hidden = !(s >= 0 && s <= 1) || (axis.log && +mark.dataset.at < axis.low);
        mark.style[isV ? "left" : "bottom"] = `${s * 100}%`;
      }
      this.figure.classList.toggle("zoomed", !whole);
      this.point(null);
    }

    label(box, axis, at, side) {
      box.replaceChildren(...at.map((v) => {
        const span = document.createElement("span");
        span.textContent = text(axis, v);
        span.style[side] = `${share(axis, v) * 100}%`;
        return span;
      }));
    }

    fitted(low, high) {
      const seen = [];
      for (const { xs, ys } of this.layers)
        xs.forEach((x, i) => { if (x >= low && x <= high && ys[i] != null && (!this.y.log || ys[i] > 0)) seen.push(ys[i]); });
      if (!seen.length) return this.y;
      const least = seen.reduce((a, b) => Math.min(a, b)), most = seen.reduce((a, b) => Math.max(a, b));
      if (this.y.log) return { ...this.y, low: Math.max(this.y.low, least / 1.15), high: Math.min(this.y.high, most * 1.25) };
      return { ...this.y, low: Math.min(this.y.low, least), high: Math.min(this.y.high, most * 1.08) || this.y.high };
    }

    // --- what is pointed at

    point(value) {
      const axis = this.shown.x;
      const off = value === null || value < axis.low || value > axis.high || !this.layers.length;
      this.cursor.hidden = this.tip.hidden = off;
      if (off) return;
      const at = share(axis, value) * 100;
      this.cursor.style.left = `${at}%`;
      this.tip.classList.toggle("left", at > 55);
      this.tip.style.left = at > 55 ? "" : `${at}%`;
      this.tip.style.right = at > 55 ? `${100 - at}%` : "";
      const head = document.createElement("b");
      head.textContent = text(axis, value, 4);
      const rows = this.layers.map((layer) => {
        const y = layer.ys[layer.bars ? below(layer.xs, value) : nearest(layer.xs, value)];
        const row = document.createElement("div"), key = document.createElement("i");
        key.className = `key ${layer.css.split(" ").slice(1).join(" ")}`;
        row.append(key, `${layer.label} `, Object.assign(document.createElement("b"), { textContent: y == null ? "–" : text(this.y, y, 3) }));
        return row;
      });
      this.tip.replaceChildren(head, ...rows);
    }

    valueAt(event) {
      const box = this.area.getBoundingClientRect();
      return valueAt(this.shown.x, Math.min(1, Math.max(0, (event.clientX - box.left) / box.width)));
    }

    snapped(value) {
      const layer = this.layers[0];
      return layer && !layer.bars && layer.xs.length ? layer.xs[nearest(layer.xs, value)] : value;
    }

    listen() {
      let from = null;
      this.area.addEventListener("pointerdown", (event) => {
        if (event.button !== 0) return;
        from = this.valueAt(event);
        this.area.setPointerCapture(event.pointerId);
      });
      this.area.addEventListener("pointermove", (event) => {
        const value = this.valueAt(event);
        pointAll(this, this.snapped(value));
        if (from === null) return;
        const a = share(this.shown.x, Math.min(from, value)), b = share(this.shown.x, Math.max(from, value));
        this.range.hidden = b - a < 0.005;
        Object.assign(this.range.style, { left: `${a * 100}%`, width: `${(b - a) * 100}%` });
      });
      const done = (event) => {
        if (from === null) return;
        const value = this.valueAt(event), low = Math.min(from, value), high = Math.max(from, value);
        from = null;
        this.range.hidden = true;
        if (event.type === "pointerup" && share(this.shown.x, high) - share(this.shown.x, low) > 0.01) zoomAll(this, low, high);
      };
      this.area.addEventListener("pointerup", done);
      this.area.addEventListener("pointercancel", done);
      this.area.addEventListener("pointerleave", () => pointAll(this, null));
      this.area.addEventListener("dblclick", () => zoomAll(this, this.x.low, this.x.high));
      this.figure.addEventListener("keydown", (event) => this.key(event));
      this.figure.addEventListener("blur", () => { this.place = null; pointAll(this, null); });
    }

    key(event) {
      const xs = this.layers[0] ? this.layers[0].xs : [], axis = this.shown.x;
      const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      const zoom = { "+": 0.5, "=": 0.5, "-": 2 }[event.key];
      if (step && xs.length) {
        let next = this.place === null ? nearest(xs, valueAt(axis, 0.5)) : this.place + step;
        next = Math.min(xs.length - 1, Math.max(0, next));
        this.place = next;
        if (xs[next] < axis.low || xs[next] > axis.high) { // the window follows
          const a = share(this.x, axis.low), b = share(this.x, axis.high), move = (b - a) * step * 0.5;
          const start = Math.min(1 - (b - a), Math.max(0, a + move));
          zoomAll(this, valueAt(this.x, start), valueAt(this.x, start + b - a));
        }
        pointAll(this, xs[next]);
      } else if (zoom) {
        const middle = share(this.x, this.place === null ? valueAt(axis, 0.5) : xs[this.place]);
        const half = (share(this.x, axis.high) - share(this.x, axis.low)) * zoom * 0.5;
        if (half < 0.002) return;
        const low = Math.max(0, middle - half), high = Math.min(1, middle + half);
        zoomAll(this, valueAt(this.x, low), valueAt(this.x, high));
      } else if (event.key === "Escape" || event.key === "0") zoomAll(this, this.x.low, this.x.high);
      else return;
      event.preventDefault();
    }
  }

  function nearest(xs, value) {
    const i = below(xs, value);
    return i + 1 < xs.length && xs[i + 1] - value < value - xs[i] ? i + 1 : i;
  }

  function below(xs, value) {
    let low = 0, high = xs.length - 1;
    while (low < high) {
      const middle = (low + high + 1) >> 1;
      if (xs[middle] <= value) low = middle;
      else high = middle - 1;
    }
    return low;
  }

  const plots = [...document.querySelectorAll("figure.plot")].map((figure) => new Plot(figure));
  const together = (plot) => plots.filter((other) => other.figure.dataset.group === plot.figure.dataset.group);
  function pointAll(plot, value) { for (const other of together(plot)) other.point(value); }
  function zoomAll(plot, low, high) {
    for (const other of together(plot)) other.show(low, high);
    const isWhole = low <= plot.x.low && high >= plot.x.high;
    const at = isWhole ? location.pathname : `#${plot.figure.dataset.group}=${digits(low, 6)},${digits(high, 6)}`;
    try { history.replaceState(null, "", at); } catch { /* a file opened without an address of its own */ }
  }
  for (const button of document.querySelectorAll("button.reset"))
    button.addEventListener("click", () => plots.forEach((plot) => zoomAll(plot, plot.x.low, plot.x.high)));
  document.body.classList.add("scripted");
  const asked = /^#(\w+)=([\d.e+-]+),([\d.e+-]+)$/.exec(location.hash); // a window somebody shared
  const about = asked && plots.find((plot) => plot.figure.dataset.group === asked[1]);
  if (about && +asked[2] < +asked[3]) zoomAll(about, Math.max(+asked[2], about.x.low), Math.min(+asked[3], about.x.high));
})();
