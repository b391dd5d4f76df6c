// Charts.

/** Number of charts so far. */
let charts = 0;

const scale = ([low, high], [from, to], log) => {
  const at = log ? Math.log10 : Number;
  const [start, length] = [at(low), at(high) - at(low)];
  const value = (place) => start + ((place - from) / (to - from)) * length;
  return {
    place: (number) => from + ((at(number) - start) / length) * (to - from),
    value: (place) => (log ? 10 ** value(place) : value(place)),
  };
};

function ticks([low, high], max, log) {
  if (log && high / low >= 10) {
    const [first, end] = [Math.floor(Math.log10(low)), Math.floor(Math.log10(high) + 1e-9)];
    const factors = end - first < 3 ? [1, 2, 5] : [1];
    const step = Math.ceil((end - first + 1) / max);
    const powers = Array.from({ length: Math.floor((end - first) / step) + 1 }, (_, index) => 10 ** (first + index * step));
    const values = powers.flatMap((power) => factors.map((factor) => Number((factor * power).toPrecision(3))));
    return values.filter((value) => value >= low && value <= high);
  }
  const unit = 10 ** Math.floor(Math.log10((high - low) / max));
  const step = [1, 2, 5, 10].map((factor) => factor * unit).find((size) => (high - low) / size <= max);
  const first = Math.ceil(low / step - 1e-9);
  const length = Math.floor(high / step + 1e-9) - first + 1;
  return Array.from({ length }, (_, index) => Number(((first + index) * step).toPrecision(12)));
}

/** The point with the nearest x; points are in ascending order of x. */
function nearest(points, x) {
  let [low, high] = [0, points.length - 1];
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (points[middle][0] < x) low = middle;
    else high = middle;
  }
  const near = [points[low], points[high]].filter(Boolean);
  return near.sort((a, b) => Math.abs(a[0] - x) - Math.abs(b[0] - x))[0];
}

/**
 * A chart. `lines`: name, color, points [x, y], in ascending order of x; `style` is "", "faint" or "dashed"; `path` are the
 * points to draw if not those; `note` says more about a point; `quiet` leaves the line out of legend and values. `stacked` draws
 * columns instead. `range`: fixed y axis.
 */
const chart = (options) => new Chart(options).figure;

class Chart {
  constructor(options) {
    Object.assign(this, { log: false, ...options });
    this.clip = `clip${(charts += 1)}`;
    this.state = { zoom: undefined, logX: false, logY: this.log, hidden: new Set(), cursor: undefined, axis: undefined };
    this.xs = [...new Set(this.lines.flatMap((line) => line.points.map(([x]) => x)))].sort((a, b) => a - b);
    [this.first, this.end] = [this.xs[0], last(this.xs)];
    this.plot = html("div.plot", { tabindex: 0, role: "img", "aria-label": `Chart: ${this.title}. Arrow keys show \
values, plus and minus zoom, Escape resets.` });
    this.tip = html("div.tip", { role: "status", hidden: "" });
    this.overlay = svg("g");
    for (const [name, act] of Object.entries({ ...this.pointers(), ...this.keys() })) this.plot.addEventListener(name, act);
    if (this.xs.length) new ResizeObserver(() => this.draw()).observe(this.plot);
    else this.plot.append(empty("No values yet."));
    this.figure = html("figure", { class: this.small ? "chart small" : "chart" },
      html("figcaption", html("b", this.title), this.legend(), this.tools()), this.plot);
  }

  /** Shows the points from x = `low` to `high`; without them, all. */
  zoom(low = this.first, high = this.end) {
    const [a, b] = [Math.max(low, this.first), Math.min(high, this.end)];
    if (b > a) this.state.zoom = a <= this.first && b >= this.end ? undefined : [a, b];
    this.draw();
  }

  draw() {
    const { plot, small, label, lines, state } = this;
    const [width, height] = [Math.max(plot.clientWidth, 140), small ? 130 : 250];
    const edges = { left: small ? 30 : 52, right: width - (small ? 10 : 16), top: 10, bottom: height - (label ? 36 : 20) };
    const { left, right, top, bottom } = edges;
    const shown = lines.filter((line) => !state.hidden.has(line.name));
    const [domain, logX] = this.domain();
    const [range, logY] = this.rangeOf(shown, domain);
    const [x, y] = [scale(domain, [left, right], logX), scale(range, [bottom, top], logY)];
    state.axis = { ...edges, x, width, shown };
    const place = ([a, b]) => (isNumber(b) && (!logY || b > 0) && (!logX || a > 0) ? [x.place(a), y.place(b)] : undefined);
    const drawn = this.stacked ? columns(shown, domain, x, y)
      : shown.map((line) => drawLine(line, (line.path ?? line.points).map(place)));
    plot.replaceChildren(
      svg("svg", { width, height, viewBox: `0 0 ${width} ${height}` },
        svg("clipPath", { id: this.clip },
          svg("rect", { x: left, y: top - 3, width: right - left + 4, height: bottom - top + 6 })),
        this.grid(edges, ticks(range, small ? 2 : 5, logY), y, ticks(domain, small ? 2 : Math.min(8, width / 70), logX), x),
        label && svg("text", { x: right, y: height - 4, "text-anchor": "end" }, label),
        svg("g", { "clip-path": `url(#${this.clip})` }, drawn), this.marked(edges, domain, x), this.overlay),
      this.tip);
    this.show(state.cursor);
  }

  /** Lowest and highest x, and whether their axis is logarithmic. */
  domain() {
    const { xs, state } = this;
    const pad = this.stacked || this.first === this.end ? 0.5 : 0;
    const domain = [...(state.zoom ?? [this.first - pad, this.end + pad])];
    const log = state.logX && domain[1] > 1;
    if (log) domain[0] = Math.max(domain[0], Math.min(xs.find((x) => x > 0), domain[1] / 10));
    return [domain, log];
  }

  /** Lowest and highest y of the lines within a domain, and whether their axis is logarithmic. */
  rangeOf(shown, domain) {
    const inside = ([x, y]) => x >= domain[0] && x <= domain[1] && isNumber(y) && (!this.state.logY || y > 0);
    const values = (chosen) => chosen.flatMap((line) => line.points.filter(inside).map(([, y]) => y)).sort((a, b) => a - b);
    const [clear, faint] = [values(shown.filter((line) => line.style !== "faint")), values(shown)];
    // The highest 1 % of the raw values may be outside the chart.
    let high = Math.max(last(clear) ?? 0, faint[Math.floor(0.99 * (faint.length - 1))] ?? 0);
    if (this.stacked) high = Math.max(0, ...this.lines[0].points.map((_, i) => sum(shown.map((line) => line.points[i][1]))));
    const log = this.state.logY && clear.length > 0;
    const low = log ? 0.7 * clear[0] : Math.min(0, clear[0] ?? 0);
    return [this.range ?? [low, high > low ? 1.04 * high : low + 1], log];
  }

  /** Grid lines with their numbers. An axis with a label has whole numbers. */
  grid({ left, right, bottom }, rows, y, columns, x) {
    return [
      ...rows.map((value) => [
        svg("line", { class: value ? "grid" : "base", x1: left, x2: right, y1: y.place(value), y2: y.place(value) }),
        svg("text", { x: left - 6, y: y.place(value) + 4, "text-anchor": "end" }, digits(value)),
      ]),
      ...columns.filter((value) => !this.label || Number.isInteger(value))
        .map((value) => svg("text", { x: x.place(value), y: bottom + 16, "text-anchor": "middle" }, digits(value))),
    ];
  }

  /** The line at the best x. */
  marked({ top, bottom }, domain, x) {
    const { mark } = this;
    return mark !== undefined && mark >= domain[0] && mark <= domain[1] ? [
      svg("line.mark", { x1: x.place(mark), x2: x.place(mark), y1: top, y2: bottom }),
      svg("text", { x: x.place(mark) - 4, y: bottom - 6, "text-anchor": "end" }, "best"),
    ] : [];
  }

  /** Shows the values at x, or none. */
  show(at) {
    const { state, tip, overlay } = this;
    state.cursor = at;
    tip.hidden = at === undefined;
    overlay.replaceChildren();
    if (at === undefined) return;
    const { x, left, right, top, bottom, shown } = state.axis;
    const found = shown.filter((line) => !line.quiet).map((line) => [line, nearest(line.points, at)]).filter(([, point]) => point);
    if (!found.length) return;
    const place = Math.min(Math.max(x.place(nearest(found.map(([, point]) => point).sort((a, b) => a[0] - b[0]), at)[0]), left), right);
    overlay.append(svg("line.cursor", { x1: place, x2: place, y1: top, y2: bottom }));
    tip.replaceChildren(html("b", `${this.label ?? "recall"} ${digits(found[0][1][0])}`), ...found.map(([line, point]) =>
      html("span", { class: `key ${line.style ?? ""} ${line.color}` }, `${line.name} ${digits(point[1])}${line.note?.(point) ?? ""}`)));
    tip.style.left = place < (left + right) / 2 ? `${place + 10}px` : "";
    tip.style.right = place < (left + right) / 2 ? "" : `${state.axis.width - place + 10}px`;
  }

  /** What a mouse or finger does: moving shows values, dragging zooms. */
  pointers() {
    const { plot, overlay, state } = this;
    const inPlot = (place) => place - plot.getBoundingClientRect().left;
    const at = (place) => state.axis.x.value(Math.min(Math.max(inPlot(place), state.axis.left), state.axis.right));
    let start;
    const drags = (event) => start !== undefined && Math.abs(event.clientX - start) >= 6;
    return {
      pointerdown: (event) => { if (event.button === 0) start = event.clientX; },
      pointermove: (event) => {
        this.show(at(event.clientX));
        if (!drags(event)) return;
        const { top, bottom } = state.axis;
        const [from, to] = [start, event.clientX].map(inPlot).sort((a, b) => a - b);
        overlay.append(svg("rect.selection", { x: from, y: top, width: to - from, height: bottom - top }));
      },
      pointerup: (event) => {
        if (drags(event)) this.zoom(...[start, event.clientX].map(at).sort((a, b) => a - b));
        else this.show(at(event.clientX));
        start = undefined;
      },
      pointerleave: (event) => { start = undefined; if (event.pointerType === "mouse") this.show(); },
      dblclick: () => this.zoom(),
    };
  }

  keys() {
    const { xs, state } = this;
    return {
      keydown: (event) => {
        const [low, high] = state.zoom ?? [this.first, this.end];
        const here = state.cursor ?? (low + high) / 2;
        const half = (high - low) / 4;
        const acts = {
          ArrowRight: () => this.show(xs.find((x) => x > here && x <= high) ?? here),
          ArrowLeft: () => this.show(last(xs.filter((x) => x < here && x >= low)) ?? here),
          "+": () => this.zoom(here - half, here + half),
          "-": () => this.zoom(low - 2 * half, high + 2 * half),
          Escape: () => { this.show(); this.zoom(); },
        };
        if (acts[event.key]) { event.preventDefault(); acts[event.key](); }
      },
      blur: () => this.show(),
    };
  }

  /** Buttons that hide a line, if there are several. */
  legend() {
    const { lines, state } = this;
    return lines.length > 1 ? lines.filter((line) => !line.quiet).map((line) => html("button", {
      type: "button", class: `key ${this.stacked ? "area" : line.style ?? ""} ${line.color}`, "aria-pressed": "true",
      click: (event) => {
        if (!state.hidden.delete(line.name)) state.hidden.add(line.name);
        event.target.setAttribute("aria-pressed", String(!state.hidden.has(line.name)));
        this.draw();
      } }, line.name)) : [];
  }

  /** Buttons for logarithmic axes and for all points. */
  tools() {
    const { state } = this;
    if (this.small || !this.xs.length) return [];
    const toggle = (name, text) => html("button", { type: "button", "aria-pressed": String(state[name]), class: `tool ${name}`,
      click: (event) => {
        state[name] = !state[name];
        event.target.setAttribute("aria-pressed", String(state[name]));
        this.draw();
      } }, text);
    return html("span", { class: "tools" },
      this.stacked ? [] : toggle("logX", "log x"),
      this.stacked || this.range ? [] : toggle("logY", "log y"),
      html("button", { type: "button", class: "tool reset", click: () => this.zoom() }, "reset"));
  }
}

function drawLine({ style, color: own }, places) {
  const pieces = places.map((place, index) => place && `${places[index - 1] ? "L" : "M"}${place[0].toFixed(1)} ${place[1].toFixed(1)}`);
  const alone = (index) => places[index] && !places[index - 1] && !places[index + 1];
  const dots = places.map((place, index) => (place && style === undefined && places.length <= 40) || alone(index));
  return [
    svg("path", { class: `line ${style ?? ""} ${own}`, d: pieces.filter(Boolean).join("") }),
    ...places.filter((_, index) => dots[index]).map(([cx, cy]) => svg("circle", { class: own, cx, cy, r: 2.5 })),
  ];
}

function columns(lines, [low, high], x, y) {
  const width = 0.8 * (x.place(2) - x.place(1));
  return (lines[0]?.points ?? []).flatMap(([at], index) => {
    let bottom = 0;
    return at < low || at > high ? [] : lines.map((line) => {
      const from = y.place(bottom);
      bottom += line.points[index][1];
      return svg("rect", { class: line.color, x: x.place(at) - width / 2, y: y.place(bottom), width, height: from - y.place(bottom) });
    });
  });
}

/** Exponential moving average over a window of points, with bias correction; gaps stay gaps. */
function smooth(points, window) {
  const keep = 1 - 1 / Math.max(window, 1);
  let [total, weight] = [0, 0];
  return points.map(([x, y]) => {
    if (!isNumber(y)) return [x, NaN];
    [total, weight] = [keep * total + (1 - keep) * y, keep * weight + (1 - keep)];
    return [x, total / weight];
  });
}
