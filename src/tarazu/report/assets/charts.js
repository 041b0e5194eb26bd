"use strict";
// Interactive curves: hover for values, drag (or +) to zoom, double-click (or Escape) to reset,
// buttons to hide a line. Without this script the page shows the same curves as static SVG.
// Text enters by textContent alone, so that no name can become markup.
(function () {
  const LEFT = 58, RIGHT = 18, TOP = 10, BOTTOM = 46;  // margins of the plot in pixels
  const MAX_DOTS = 40;  // a line with more points shows no dots
  const TICK_GAP = 44;  // least distance of two ticks of a log axis
  const DRAG = 12;  // a shorter drag is a click
  let width = 640, height = 320;  // of every chart

  const plotWidth = () => width - LEFT - RIGHT;
  const plotHeight = () => height - TOP - BOTTOM;
  const language = () => (document.getElementById("show-fa").checked ? "fa" : "en");
  const persianDigits = () => language() === "fa" && document.getElementById("digits").checked;

  // Fit the charts to a narrow screen; returns whether their size changed.
  function fit() {
    const room = document.getElementById("main").clientWidth - 44;
    const fitted = Math.max(320, Math.min(640, room));
    if (Math.abs(fitted - width) <= 8) return false;
    width = fitted;
    height = Math.round(Math.max(240, fitted / 2));
    return true;
  }

  function localDigits(text) {
    if (!persianDigits()) return text;
    return text.replace(/(\d),(?=\d)/g, "$1٬").replace(/(\d)\.(?=\d)/g, "$1٫")
      .replace(/\d/g, (digit) => "۰۱۲۳۴۵۶۷۸۹"[digit]);
  }

  // A method's name keeps its digits; a Persian label does not.
  const label = (text) => (/[\u0600-\u06ff]/.test(text) ? localDigits(text) : text);

  function shortNumber(value) {
    const size = Math.abs(value);
    if (size >= 1e6) return localDigits(+(value / 1e6).toPrecision(3) + "M");
    if (size >= 1e4) return localDigits(+(value / 1e3).toPrecision(3) + "k");
    return localDigits(String(+value.toPrecision(4)));
  }

  // Multiples of 1, 2 or 5 times a power of ten, about `count` of them.
  function ticks(low, high, count) {
    const raw = (high - low) / count || 1, power = 10 ** Math.floor(Math.log10(raw));
    const step = [1, 2, 5, 10].map((n) => n * power).find((n) => n >= raw);
    const values = [];
    for (let v = Math.ceil(low / step) * step; v <= high + step * 1e-6; v += step) {
      values.push(+v.toPrecision(12));
    }
    return values;
  }

  // [smallest, largest], also of more values than a call may have arguments.
  const range = (values) => values.reduce(
    ([low, high], v) => [Math.min(low, v), Math.max(high, v)], [Infinity, -Infinity]);

  function padded(values) {
    const [low, high] = range(values), margin = (high - low || Math.abs(high) || 1) * 0.05;
    return { y0: low - margin, y1: high + margin };
  }

  function element(name, attributes, parent) {
    const made = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const key in attributes) made.setAttribute(key, attributes[key]);
    if (parent) parent.append(made);
    return made;
  }

  function div(className) {
    const made = document.createElement("div");
    made.className = className;
    return made;
  }

  class Chart {
    constructor(figure, data) {
      this.figure = figure;
      this.data = data;  // as `line_figure` writes it: x, y, log, series
      this.scale = data.log ? Math.log10 : (x) => x;  // linear along the axis
      this.hidden = new Set();  // indices of series
      this.zoom = null;  // {x0, x1, y0, y1}, or null: everything
      this.current = null;  // the point whose value is shown: {line, i}
      this.live = div("live");
      this.legend = div("legend");
      this.tip = div("tip");
      this.tip.hidden = true;
      this.tip.setAttribute("aria-live", "polite");
      const staticChart = figure.querySelector(".scroll");
      staticChart.hidden = true;
      staticChart.after(this.live, this.legend);
      this.draw();
    }

    shown() { return this.data.series.filter((_, i) => !this.hidden.has(i)); }

    extent() {
      if (this.zoom) return this.zoom;
      const lines = this.shown().length ? this.shown() : this.data.series;
      const [x0, x1] = range(lines.flatMap((line) => line.x.map(this.scale)));
      return { x0, x1, ...padded(lines.flatMap((line) => line.y)) };
    }

    px(x) {
      const { x0, x1 } = this.range;
      return LEFT + ((this.scale(x) - x0) / (x1 - x0 || 1)) * plotWidth();
    }

    py(y) {
      const { y0, y1 } = this.range;
      return height - BOTTOM - ((y - y0) / (y1 - y0 || 1)) * plotHeight();
    }

    draw() {
      this.range = this.extent();
      const svg = (this.svg = element("svg", {
        viewBox: `0 0 ${width} ${height}`, width, height, tabindex: 0, role: "img",
        "aria-label": this.figure.querySelector("figcaption").innerText,
      }));
      const id = "plot-" + this.figure.id;
      const area = { x: LEFT, y: TOP, width: plotWidth(), height: plotHeight() };
      element("rect", area, element("clipPath", { id }, element("defs", {}, svg)));
      this.drawAxes(language());
      const plot = element("g", { "clip-path": `url(#${id})` }, svg);
      for (const line of this.shown()) this.drawLine(line, plot);
      this.cursor = element("circle", {
        r: 5, fill: "none", stroke: "currentColor", "stroke-width": 2, visibility: "hidden",
      }, svg);
      this.band = element("rect", {
        y: TOP, height: plotHeight(), fill: "currentColor", opacity: 0.12, visibility: "hidden",
      }, svg);
      this.listen();
      const focused = this.live.contains(document.activeElement);
      this.live.replaceChildren(svg, this.tip);
      if (focused) svg.focus();  // the new drawing takes the keys
      this.drawLegend();
    }

    drawLine(line, plot) {
      const points = line.x.map((x, i) => [this.px(x).toFixed(1), this.py(line.y[i]).toFixed(1)]);
      element("polyline", {
        points: points.join(" "), fill: "none", stroke: line.color, "stroke-width": 2,
        "stroke-dasharray": line.dash.join(" "),
      }, plot);
      if (points.length > MAX_DOTS) return;
      for (const [cx, cy] of points) element("circle", { cx, cy, r: 2.5, fill: line.color }, plot);
    }

    formatX(x) {
      return this.data.log ? x.toExponential().replace("e+", "e") : shortNumber(x);
    }

    xTicks() {  // a log axis has a tick at each x of a point, where there is space
      const { x0, x1 } = this.range;
      if (!this.data.log) return ticks(x0, x1, Math.round(width / 107));
      const values = [...new Set(this.data.series.flatMap((line) => line.x))].sort((a, b) => a - b);
      const kept = [];
      for (const x of values) {
        const inside = this.scale(x) >= x0 - 1e-9 && this.scale(x) <= x1 + 1e-9;
        const free = !kept.length || this.px(x) - this.px(kept.at(-1)) > TICK_GAP;
        if (inside && free) kept.push(x);
      }
      return kept;
    }

    drawAxes(lang) {
      const text = (value, attributes) => {
        const all = { fill: "currentColor", "font-size": 12, ...attributes };
        element("text", all, this.svg).textContent = value;
      };
      const rule = (y, attributes) => element("line", {
        x1: LEFT, x2: width - RIGHT, y1: y, y2: y, stroke: "currentColor", ...attributes,
      }, this.svg);
      const middle = { "text-anchor": "middle" }, bottom = height - BOTTOM;
      for (const x of this.xTicks()) {
        text(this.formatX(x), { x: this.px(x), y: bottom + 17, ...middle });
      }
      for (const y of ticks(this.range.y0, this.range.y1, 5)) {
        rule(this.py(y), { "stroke-opacity": 0.15 });
        text(shortNumber(y), { x: LEFT - 6, y: this.py(y) + 4, "text-anchor": "end" });
      }
      rule(bottom, {});
      text(this.data.x[lang], { x: LEFT + plotWidth() / 2, y: height - 8, ...middle });
      const turned = `translate(13,${TOP + plotHeight() / 2}) rotate(-90)`;
      text(this.data.y[lang], { transform: turned, ...middle });
    }

    drawLegend() {
      this.legend.replaceChildren(...this.data.series.map((line, i) => {
        const button = document.createElement("button");
        const key = element("svg", { width: 26, height: 8, "aria-hidden": "true" });
        element("line", {
          x1: 0, x2: 26, y1: 4, y2: 4, stroke: line.color, "stroke-width": 3,
          "stroke-dasharray": line.dash.join(" "),
        }, key);
        button.type = "button";
        button.setAttribute("aria-pressed", String(!this.hidden.has(i)));
        button.append(key, " " + label(line.name[language()]));
        button.addEventListener("click", () => {
          if (!this.hidden.delete(i)) this.hidden.add(i);
          this.draw();
          this.legend.children[i].focus();
        });
        return button;
      }));
    }

    position(event) {  // of the pointer, in the chart's pixels
      const box = this.svg.getBoundingClientRect();
      return {
        x: ((event.clientX - box.left) / box.width) * width,
        y: ((event.clientY - box.top) / box.height) * height,
      };
    }

    nearest({ x, y }) {  // across counts three times as much as up and down
      let best = null;
      for (const line of this.shown()) line.x.forEach((value, i) => {
        const distance = Math.abs(this.px(value) - x) * 3 + Math.abs(this.py(line.y[i]) - y);
        if (!best || distance < best.distance) best = { line, i, distance };
      });
      return best;
    }

    show(point) {  // the value of a point, beside it
      if (!point) return;
      const { line, i } = (this.current = point), lang = language();
      const x = this.px(line.x[i]), y = this.py(line.y[i]), box = this.svg.getBoundingClientRect();
      for (const [key, value] of [["cx", x], ["cy", y], ["visibility", "visible"]]) {
        this.cursor.setAttribute(key, value);
      }
      const value = localDigits(String(+line.y[i].toPrecision(5)));
      const along = `${this.data.x[lang]}: ${this.formatX(line.x[i])}`;
      this.tip.textContent = `${label(line.name[lang])}: ${value}  (${along})`;
      this.tip.hidden = false;
      const rightmost = Math.max(0, box.width - this.tip.offsetWidth - 4);
      this.tip.style.left = Math.min((x / width) * box.width + 8, rightmost) + "px";
      this.tip.style.top = Math.max(0, (y / height) * box.height - 36) + "px";
    }

    step(by) {  // to the next or previous point of the line
      const line = (this.current && this.current.line) || this.shown()[0];
      if (!line) return;
      const from = this.current ? this.current.i : -1;
      this.show({ line, i: Math.max(0, Math.min(line.x.length - 1, from + by)) });
    }

    zoomTo(a, b) {  // to what lies between two positions in pixels
      const perPixel = (this.range.x1 - this.range.x0) / plotWidth();
      const value = (px) => this.range.x0 + (px - LEFT) * perPixel;
      const x0 = value(Math.min(a, b)), x1 = value(Math.max(a, b));
      const inside = (x) => this.scale(x) >= x0 && this.scale(x) <= x1;
      const ys = this.shown().flatMap((line) => line.y.filter((_, i) => inside(line.x[i])));
      if (ys.length < 2) return;
      this.zoom = { x0, x1, ...padded(ys) };
      this.draw();
    }

    zoomIn() {  // to half of what is shown, around the current point
      const point = this.current, quarter = plotWidth() / 4;
      const middle = point ? this.px(point.line.x[point.i]) : LEFT + plotWidth() / 2;
      this.zoomTo(Math.max(LEFT, middle - quarter), Math.min(width - RIGHT, middle + quarter));
    }

    reset() { this.zoom = null; this.draw(); }

    listen() {
      let start = null;  // where a drag began
      const on = (type, act) => this.svg.addEventListener(type, act);
      on("pointerdown", (event) => { start = this.position(event).x; });
      on("pointermove", (event) => {
        const at = this.position(event);
        if (start === null || Math.abs(at.x - start) <= DRAG / 2) {
          this.show(this.nearest(at));
          return;
        }
        this.band.setAttribute("x", Math.min(start, at.x));
        this.band.setAttribute("width", Math.abs(at.x - start));
        this.band.setAttribute("visibility", "visible");
      });
      on("pointerup", (event) => {
        const end = this.position(event).x;
        if (start !== null && Math.abs(end - start) > DRAG) this.zoomTo(start, end);
        start = null;
      });
      on("pointerleave", () => {
        start = null;
        this.tip.hidden = true;
        for (const mark of [this.band, this.cursor]) mark.setAttribute("visibility", "hidden");
      });
      on("dblclick", () => this.reset());
      const keys = {
        ArrowRight: () => this.step(1), ArrowLeft: () => this.step(-1), Escape: () => this.reset(),
        "+": () => this.zoomIn(), "=": () => this.zoomIn(),
      };
      on("keydown", (event) => {
        if (!Object.hasOwn(keys, event.key)) return;
        keys[event.key]();
        event.preventDefault();
      });
    }
  }

  fit();
  const charts = [...document.querySelectorAll("figure.chart > script.points")].map(
    (points) => new Chart(points.closest("figure"), JSON.parse(points.textContent)));
  const redraw = () => charts.forEach((chart) => chart.draw());
  const hint = document.querySelector(".chart-hint");
  if (hint) hint.hidden = false;
  for (const id of ["show-fa", "show-en", "digits"]) {
    document.getElementById(id).addEventListener("change", redraw);
  }
  addEventListener("resize", () => { if (fit()) redraw(); });
})();
