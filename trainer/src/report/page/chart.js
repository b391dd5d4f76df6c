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
function chart({ title, label, lines, mark, range, small, stacked, log = false }) {
  const clip = `clip${(charts += 1)}`;
  const state = { zoom: undefined, logX: false, logY: log, hidden: new Set(), cursor: undefined, axis: undefined };
  const plot = html("div.plot", { tabindex: 0, role: "img", "aria-label": `Chart: ${title}. Arrow keys show \
values, plus and minus zoom, Escape resets.` });
  const tip = html("div.tip", { role: "status", hidden: "" });
  const overlay = svg("g");
  const xs = [...new Set(lines.flatMap((line) => line.points.map(([x]) => x)))].sort((a, b) => a - b);
  const [first, end, height] = [xs[0], last(xs), small ? 130 : 250];
  const button = (name, text, act) =>
    html("button", { type: "button", "aria-pressed": "false", class: `tool ${name}`, click: (event) => {
      act();
      event.target.setAttribute("aria-pressed", String(state[name] === true));
      draw();
    } }, text);
  const zoomTo = (low, high) => {
    const [a, b] = [Math.max(low, first), Math.min(high, end)];
    if (b > a) state.zoom = a <= first && b >= end ? undefined : [a, b];
    draw();
  };

  function draw() {
    const width = Math.max(plot.clientWidth, 140);
    const [left, right, top, bottom] = [small ? 30 : 52, width - (small ? 10 : 16), 10, height - (label ? 36 : 20)];
    const pad = stacked || first === end ? 0.5 : 0;
    const domain = [...(state.zoom ?? [first - pad, end + pad])];
    const logX = state.logX && domain[1] > 1;
    if (logX) domain[0] = Math.max(domain[0], Math.min(xs.find((x) => x > 0), domain[1] / 10));
    const shown = lines.filter((line) => !state.hidden.has(line.name));
    const inside = ([x, y]) => x >= domain[0] && x <= domain[1] && isNumber(y) && (!state.logY || y > 0);
    const values = (chosen) => chosen.flatMap((line) => line.points.filter(inside).map(([, y]) => y)).sort((a, b) => a - b);
    const [clear, faint] = [values(shown.filter((line) => line.style !== "faint")), values(shown)];
    // The highest 1 % of the raw values may be outside the chart.
    let high = Math.max(last(clear) ?? 0, faint[Math.floor(0.99 * (faint.length - 1))] ?? 0);
    if (stacked) high = Math.max(0, ...lines[0].points.map((_, i) => sum(shown.map((line) => line.points[i][1]))));
    const logY = state.logY && clear.length > 0;
    const low = logY ? 0.7 * clear[0] : Math.min(0, clear[0] ?? 0);
    const yDomain = range ?? [low, high > low ? 1.04 * high : low + 1];
    const [x, y] = [scale(domain, [left, right], logX), scale(yDomain, [bottom, top], logY)];
    state.axis = { x, left, right, top, bottom, width, shown };
    const grid = [
      ...ticks(yDomain, small ? 2 : 5, logY).map((value) => [
        svg("line", { class: value ? "grid" : "base", x1: left, x2: right, y1: y.place(value), y2: y.place(value) }),
        svg("text", { x: left - 6, y: y.place(value) + 4, "text-anchor": "end" }, digits(value)),
      ]),
      ...ticks(domain, small ? 2 : Math.min(8, width / 70), logX).filter((value) => !label || Number.isInteger(value))
        .map((value) => svg("text", { x: x.place(value), y: bottom + 16, "text-anchor": "middle" }, digits(value))),
      label && svg("text", { x: right, y: height - 4, "text-anchor": "end" }, label),
    ];
    const place = ([a, b]) => (isNumber(b) && (!logY || b > 0) && (!logX || a > 0) ? [x.place(a), y.place(b)] : undefined);
    const drawn = stacked ? columns(shown, domain, x, y) : shown.map((line) => drawLine(line, (line.path ?? line.points).map(place)));
    const marked = mark !== undefined && mark >= domain[0] && mark <= domain[1] ? [
      svg("line.mark", { x1: x.place(mark), x2: x.place(mark), y1: top, y2: bottom }),
      svg("text", { x: x.place(mark) - 4, y: bottom - 6, "text-anchor": "end" }, "best"),
    ] : [];
    plot.replaceChildren(
      svg("svg", { width, height, viewBox: `0 0 ${width} ${height}` },
        svg("clipPath", { id: clip }, svg("rect", { x: left, y: top - 3, width: right - left + 4, height: bottom - top + 6 })),
        grid, svg("g", { "clip-path": `url(#${clip})` }, drawn), marked, overlay),
      tip);
    show(state.cursor);
  }

  /** Shows the values at x, or none. */
  function show(at) {
    state.cursor = at;
    tip.hidden = at === undefined;
    overlay.replaceChildren();
    if (at === undefined) return;
    const { x, left, right, top, bottom, shown } = state.axis;
    const found = shown.filter((line) => !line.quiet).map((line) => [line, nearest(line.points, at)]).filter(([, point]) => point);
    if (!found.length) return;
    const place = Math.min(Math.max(x.place(nearest(found.map(([, point]) => point).sort((a, b) => a[0] - b[0]), at)[0]), left), right);
    overlay.append(svg("line.cursor", { x1: place, x2: place, y1: top, y2: bottom }));
    tip.replaceChildren(html("b", `${label ?? "recall"} ${digits(found[0][1][0])}`), ...found.map(([line, point]) =>
      html("span", { class: `key ${line.style ?? ""} ${line.color}` }, `${line.name} ${digits(point[1])}${line.note?.(point) ?? ""}`)));
    tip.style.left = place < (left + right) / 2 ? `${place + 10}px` : "";
    tip.style.right = place < (left + right) / 2 ? "" : `${state.axis.width - place + 10}px`;
  }

  const at = (event) => {
    const { x, left, right } = state.axis;
    return x.value(Math.min(Math.max(event.clientX - plot.getBoundingClientRect().left, left), right));
  };
  let start;
  const handlers = {
    pointerdown: (event) => { if (event.button === 0) start = event.clientX; },
    pointermove: (event) => {
      show(at(event));
      if (start === undefined || Math.abs(event.clientX - start) < 6) return;
      const { top, bottom } = state.axis;
      const [from, to] = [start, event.clientX].map((place) => place - plot.getBoundingClientRect().left).sort((a, b) => a - b);
      overlay.append(svg("rect.selection", { x: from, y: top, width: to - from, height: bottom - top }));
    },
    pointerup: (event) => {
      if (start !== undefined && Math.abs(event.clientX - start) >= 6) {
        const ends = [at({ clientX: start }), at(event)].sort((a, b) => a - b);
        zoomTo(...ends);
      } else show(at(event));
      start = undefined;
    },
    pointerleave: (event) => { start = undefined; if (event.pointerType === "mouse") show(); },
    dblclick: () => { state.zoom = undefined; draw(); },
    keydown: (event) => {
      const [low, high] = state.zoom ?? [first, end];
      const here = state.cursor ?? (low + high) / 2;
      const half = (high - low) / 4;
      const acts = {
        ArrowRight: () => show(xs.find((x) => x > here && x <= high) ?? here),
        ArrowLeft: () => show(last(xs.filter((x) => x < here && x >= low)) ?? here),
        "+": () => zoomTo(here - half, here + half),
        "-": () => zoomTo(low - 2 * half, high + 2 * half),
        Escape: () => { state.zoom = undefined; show(); draw(); },
      };
      if (acts[event.key]) { event.preventDefault(); acts[event.key](); }
    },
    blur: () => show(),
  };
  for (const [name, act] of Object.entries(handlers)) plot.addEventListener(name, act);
  if (xs.length) new ResizeObserver(draw).observe(plot);
  else plot.append(empty("No values yet."));
  const legend = lines.length > 1 ? lines.filter((line) => !line.quiet).map((line) => html("button", {
    type: "button", class: `key ${stacked ? "area" : line.style ?? ""} ${line.color}`, "aria-pressed": "true",
    click: (event) => {
      if (!state.hidden.delete(line.name)) state.hidden.add(line.name);
      event.target.setAttribute("aria-pressed", String(!state.hidden.has(line.name)));
      draw();
    } }, line.name)) : [];
  const tools = small || !xs.length ? [] : html("span", { class: "tools" },
    stacked ? [] : button("logX", "log x", () => { state.logX = !state.logX; }),
    stacked || range ? [] : button("logY", "log y", () => { state.logY = !state.logY; }),
    button("reset", "reset", () => { state.zoom = undefined; }));
  if (log) tools.querySelector?.(".logY")?.setAttribute("aria-pressed", "true");
  return html("figure", { class: small ? "chart small" : "chart" },
    html("figcaption", html("b", title), legend, tools), plot);
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
