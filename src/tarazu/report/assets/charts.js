"use strict";
// Curves that answer: hover for values, drag (or +) to zoom, double-click (or Escape) to go back, buttons to hide a line.
// Without this script the page shows the same curves as a fixed picture. Text enters by textContent alone.
(function () {
  const LEFT = 58, RIGHT = 18, TOP = 10, BOTTOM = 46;
  let WIDE = 640, HIGH = 320;
  const fit = () => {  // a narrow screen gets a narrow chart, not a shrunken one
    const wide = Math.max(320, Math.min(640, document.getElementById("main").clientWidth - 44));
    const changed = Math.abs(wide - WIDE) > 8;
    if (changed) [WIDE, HIGH] = [wide, Math.round(Math.max(240, wide / 2))];
    return changed;
  };  const language = () => (document.getElementById("show-fa").checked ? "fa" : "en");
  const persian = () => language() === "fa" && document.getElementById("digits").checked;
  const figures = (text) => persian() ? text.replace(/(\d),(?=\d)/g, "$1٬").replace(/(\d)\.(?=\d)/g, "$1٫").replace(/\d/g, (d) => "۰۱۲۳۴۵۶۷۸۹"[d]) : text;
  const named = (text) => /[\u0600-\u06ff]/.test(text) ? figures(text) : text;  // a method's name keeps its digits
  const rate = (value) => value.toExponential().replace("e+", "e");
  const make = (name, attributes, parent) => {
    const element = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const key in attributes) element.setAttribute(key, attributes[key]);
    if (parent) parent.append(element);
    return element;
  };
  const short = (value) => {
    const size = Math.abs(value);
    if (size >= 1e6) return figures(+(value / 1e6).toPrecision(3) + "M");
    if (size >= 1e4) return figures(+(value / 1e3).toPrecision(3) + "k");
    return figures(String(+value.toPrecision(4)));
  };
  const ticks = (low, high, count) => {
    const raw = (high - low) / count || 1, power = 10 ** Math.floor(Math.log10(raw));
    const step = [1, 2, 5, 10].map((n) => n * power).find((n) => n >= raw);
    const found = [];
    for (let v = Math.ceil(low / step) * step; v <= high + step * 1e-6; v += step) found.push(+v.toPrecision(12));
    return found;
  };

  class Chart {
    constructor(figure, data) {
      this.figure = figure;
      this.data = data;
      this.along = data.log ? Math.log10 : (x) => x;  // how far along the axis a value stands
      this.hidden = new Set();
      this.zoom = null;
      this.live = document.createElement("div");
      this.live.className = "live";
      this.legend = document.createElement("div");
      this.legend.className = "legend";
      this.tip = document.createElement("div");
      this.tip.className = "tip";
      this.tip.hidden = true;
      this.tip.setAttribute("aria-live", "polite");
      const still = figure.querySelector(".scroll");
      still.hidden = true;
      still.after(this.live);
      this.live.after(this.legend);
      this.draw();
    }

    shown() { return this.data.series.filter((_, i) => !this.hidden.has(i)); }

    extent() {
      if (this.zoom) return this.zoom;
      const lines = this.shown().length ? this.shown() : this.data.series;
      const xs = lines.flatMap((s) => s.x.map(this.along)), ys = lines.flatMap((s) => s.y);
      const y0 = ys.reduce((a, b) => Math.min(a, b)), y1 = ys.reduce((a, b) => Math.max(a, b)), room = (y1 - y0 || Math.abs(y1) || 1) * 0.05;
      return { x0: xs.reduce((a, b) => Math.min(a, b)), x1: xs.reduce((a, b) => Math.max(a, b)), y0: y0 - room, y1: y1 + room };
    }

    px(x) { return LEFT + ((this.along(x) - this.range.x0) / (this.range.x1 - this.range.x0 || 1)) * (WIDE - LEFT - RIGHT); }
    py(y) { return HIGH - BOTTOM - ((y - this.range.y0) / (this.range.y1 - this.range.y0 || 1)) * (HIGH - TOP - BOTTOM); }

    draw() {
      const lang = language();
      this.range = this.extent();
      const svg = (this.svg = make("svg", { viewBox: `0 0 ${WIDE} ${HIGH}`, width: WIDE, height: HIGH, tabindex: 0, role: "img", "aria-label": this.figure.querySelector("figcaption").innerText }));
      const id = "plot-" + this.figure.id;
      make("rect", { x: LEFT, y: TOP, width: WIDE - LEFT - RIGHT, height: HIGH - TOP - BOTTOM }, make("clipPath", { id }, make("defs", {}, svg)));
      this.axes(svg, lang);
      const plot = make("g", { "clip-path": `url(#${id})` }, svg);
      for (const line of this.shown()) {
        const points = line.x.map((x, i) => `${this.px(x).toFixed(1)},${this.py(line.y[i]).toFixed(1)}`).join(" ");
        make("polyline", { points, fill: "none", stroke: line.color, "stroke-width": 2, "stroke-dasharray": line.dash.join(" ") }, plot);
        if (line.x.length <= 40) line.x.forEach((x, i) => make("circle", { cx: this.px(x), cy: this.py(line.y[i]), r: 2.5, fill: line.color }, plot));
      }
      this.cursor = make("circle", { r: 5, fill: "none", stroke: "currentColor", "stroke-width": 2, visibility: "hidden" }, svg);
      this.band = make("rect", { y: TOP, height: HIGH - TOP - BOTTOM, fill: "currentColor", opacity: 0.12, visibility: "hidden" }, svg);
      this.listen(svg);
      const focused = this.live.contains(document.activeElement);
      this.live.replaceChildren(svg, this.tip);
      if (focused) svg.focus();
      this.drawLegend(lang);
    }

    told(x) { return this.data.log ? rate(x) : short(x); }

    marks() {  // a log axis is marked where something was tried
      if (!this.data.log) return ticks(this.range.x0, this.range.x1, Math.round(WIDE / 107));
      const tried = [...new Set(this.data.series.flatMap((s) => s.x))].sort((a, b) => a - b), found = [];
      for (const x of tried) {
        const inside = this.along(x) >= this.range.x0 - 1e-9 && this.along(x) <= this.range.x1 + 1e-9;
        if (inside && (!found.length || this.px(x) - this.px(found[found.length - 1]) > 44)) found.push(x);
      }
      return found;
    }

    axes(svg, lang) {
      const text = (value, attributes) => { make("text", { fill: "currentColor", "font-size": 12, ...attributes }, svg).textContent = value; };
      for (const x of this.marks()) text(this.told(x), { x: this.px(x), y: HIGH - BOTTOM + 17, "text-anchor": "middle" });
      for (const y of ticks(this.range.y0, this.range.y1, 5)) {
        make("line", { x1: LEFT, x2: WIDE - RIGHT, y1: this.py(y), y2: this.py(y), stroke: "currentColor", "stroke-opacity": 0.15 }, svg);
        text(short(y), { x: LEFT - 6, y: this.py(y) + 4, "text-anchor": "end" });
      }
      make("line", { x1: LEFT, x2: WIDE - RIGHT, y1: HIGH - BOTTOM, y2: HIGH - BOTTOM, stroke: "currentColor" }, svg);
      text(this.data.x[lang], { x: (LEFT + WIDE - RIGHT) / 2, y: HIGH - 8, "text-anchor": "middle" });
      text(this.data.y[lang], { transform: `translate(13,${(TOP + HIGH - BOTTOM) / 2}) rotate(-90)`, "text-anchor": "middle" });
    }

    drawLegend(lang) {
      this.legend.replaceChildren(...this.data.series.map((line, i) => {
        const button = document.createElement("button"), key = make("svg", { width: 26, height: 8, "aria-hidden": "true" });
        make("line", { x1: 0, x2: 26, y1: 4, y2: 4, stroke: line.color, "stroke-width": 3, "stroke-dasharray": line.dash.join(" ") }, key);
        button.type = "button";
        button.setAttribute("aria-pressed", String(!this.hidden.has(i)));
        button.append(key, " " + named(line.name[lang]));
        button.addEventListener("click", () => { this.hidden.has(i) ? this.hidden.delete(i) : this.hidden.add(i); this.draw(); this.legend.children[i].focus(); });
        return button;
      }));
    }

    at(event) {
      const box = this.svg.getBoundingClientRect();
      return { x: ((event.clientX - box.left) / box.width) * WIDE, y: ((event.clientY - box.top) / box.height) * HIGH };
    }

    nearest(place) {
      let best = null;
      for (const line of this.shown()) line.x.forEach((x, i) => {
        const away = Math.abs(this.px(x) - place.x) * 3 + Math.abs(this.py(line.y[i]) - place.y);
        if (!best || away < best.away) best = { line, i, away };
      });
      return best;
    }

    show(found) {
      if (!found) return;
      const { line, i } = found, x = this.px(line.x[i]), y = this.py(line.y[i]), box = this.svg.getBoundingClientRect();
      this.cursor.setAttribute("cx", x);
      this.cursor.setAttribute("cy", y);
      this.cursor.setAttribute("visibility", "visible");
      this.tip.textContent = `${named(line.name[language()])}: ${figures(String(+line.y[i].toPrecision(5)))}  (${this.data.x[language()]}: ${this.told(line.x[i])})`;
      this.tip.hidden = false;
      this.tip.style.left = Math.min((x / WIDE) * box.width + 8, Math.max(0, box.width - this.tip.offsetWidth - 4)) + "px";
      this.tip.style.top = Math.max(0, (y / HIGH) * box.height - 36) + "px";
      this.found = found;
    }

    step(by) {
      const line = (this.found && this.found.line) || this.shown()[0];
      if (!line) return;
      const from = this.found && this.found.line === line ? this.found.i : -1;
      this.show({ line, i: Math.max(0, Math.min(line.x.length - 1, from + by)) });
    }

    zoomTo(a, b) {
      const back = (x) => this.range.x0 + ((x - LEFT) / (WIDE - LEFT - RIGHT)) * (this.range.x1 - this.range.x0);
      const [x0, x1] = [back(Math.min(a, b)), back(Math.max(a, b))];
      const ys = this.shown().flatMap((s) => s.y.filter((_, i) => this.along(s.x[i]) >= x0 && this.along(s.x[i]) <= x1));
      if (ys.length < 2) return;
      const room = (Math.max(...ys) - Math.min(...ys) || 1) * 0.05;
      this.zoom = { x0, x1, y0: Math.min(...ys) - room, y1: Math.max(...ys) + room };
      this.draw();
    }

    closer() {  // half of what is shown, around the point that was told last
      const found = this.found, middle = found ? this.px(found.line.x[found.i]) : (LEFT + WIDE - RIGHT) / 2, span = (WIDE - LEFT - RIGHT) / 4;
      this.zoomTo(Math.max(LEFT, middle - span), Math.min(WIDE - RIGHT, middle + span));
    }

    reset() { this.zoom = null; this.draw(); }

    listen(svg) {
      let from = null;
      svg.addEventListener("pointerdown", (event) => { from = this.at(event).x; });
      svg.addEventListener("pointermove", (event) => {
        const place = this.at(event);
        if (from !== null && Math.abs(place.x - from) > 6) {
          this.band.setAttribute("x", Math.min(from, place.x));
          this.band.setAttribute("width", Math.abs(place.x - from));
          this.band.setAttribute("visibility", "visible");
        } else this.show(this.nearest(place));
      });
      svg.addEventListener("pointerup", (event) => { const to = this.at(event).x; if (from !== null && Math.abs(to - from) > 12) this.zoomTo(from, to); from = null; });
      svg.addEventListener("pointerleave", () => { from = null; this.tip.hidden = true; this.band.setAttribute("visibility", "hidden"); this.cursor.setAttribute("visibility", "hidden"); });
      svg.addEventListener("dblclick", () => this.reset());
      svg.addEventListener("keydown", (event) => {
        if (event.key === "ArrowRight") this.step(1);
        else if (event.key === "ArrowLeft") this.step(-1);
        else if (event.key === "Escape") this.reset();
        else if (event.key === "+" || event.key === "=") this.closer();
        else return;
        event.preventDefault();
      });
    }
  }

  fit();
  const charts = [...document.querySelectorAll("figure.chart")].map((figure) => {
    const points = figure.querySelector("script.points");
    return points ? new Chart(figure, JSON.parse(points.textContent)) : null;
  }).filter(Boolean);
  const hint = document.querySelector(".chart-hint");
  if (hint) hint.hidden = false;
  for (const id of ["show-fa", "show-en", "digits"]) document.getElementById(id).addEventListener("change", () => charts.forEach((chart) => chart.draw()));
  addEventListener("resize", () => { if (fit()) charts.forEach((chart) => chart.draw()); });
})();
