// The sections of the report, and the page.

const METRICS = [
  ["AP", "IoU 0.50 to 0.95"], ["AP50", "IoU 0.50"], ["AP75", "IoU 0.75"], ["APs", "small objects"],
  ["APm", "medium objects"], ["APl", "large objects"], ["AR1", "1 detection per image and class"],
  ["AR10", "10 detections per image and class"], ["AR100", "100 detections per image and class"],
  ["ARs", "small objects"], ["ARm", "medium objects"], ["ARl", "large objects"],
];
/** Epochs, and validations within epochs, whose `epoch` has a fraction. */
const overTime = (run) => [...run.epochs, ...run.validations].sort((a, b) => a.epoch - b.epoch);
const validated = (run) => overTime(run).filter((epoch) => epoch.validation);
const best = (run) => validated(run).reduce((a, b) => (a && a.validation.AP >= b.validation.AP ? a : b), undefined);
/** The metrics of the best checkpoint, or those that the log has of it. */
const summary = (run) => run.results?.summary ?? best(run)?.validation ?? {};
const spent = (run) => sum(run.epochs.map((epoch) => epoch.seconds));
const steps = (run) => last(run.steps.step) ?? 0;

/** A line per run and name of points of its epochs. */
const perEpoch = (values) => runs.flatMap((run, index) => values.map(([name, value, style], place) => ({
  name: several ? [run.name, values.length > 1 ? name : ""].join(" ").trim() : name,
  color: color(several ? index : place),
  style,
  points: overTime(run).map((epoch) => [epoch.epoch, value(epoch) ?? NaN]).filter(([, y]) => isNumber(y)),
})).filter((line) => line.points.length));

function resultsSection() {
  const charts = several
    ? ["AP", "AP50", "AP75"].map((name) => chart({ title: `${name} after each validation`, label: "epoch",
      lines: perEpoch([[name, (epoch) => metric(epoch.validation?.[name])]]) }))
    : [chart({ title: "Average precision after each validation", label: "epoch", mark: best(runs[0])?.epoch,
      lines: perEpoch(["AP", "AP50", "AP75"].map((name) => [name, (epoch) => metric(epoch.validation?.[name])])) })];
  const values = runs.map((run, index) => ({ name: several ? run.name : "value", bar: !several, show: fraction,
    value: ([name]) => metric(summary(run)[name]), key: () => `key-${color(index)}` }));
  const numbers = table("COCO metrics", [{ name: "metric", value: ([name]) => name },
    { name: "meaning", value: ([, meaning]) => meaning, key: () => "meaning" }, ...values], METRICS);
  if (!several) return [html("div.pair", charts, numbers)];
  const overview = table("runs", [
    { name: "run", value: (run) => run.name, key: (run) => `key ${color(runs.indexOf(run))}` },
    { name: "epochs", value: (run) => run.epochs.length }, { name: "steps", value: steps, show: count },
    ...["AP", "AP50", "AP75", "AR100"].map((name) => ({ name, bar: true, show: fraction, value: (run) => metric(summary(run)[name]) })),
    { name: "best epoch", value: (run) => best(run)?.epoch ?? NaN, show: digits },
    { name: "training time", value: spent, show: duration },
    { name: "images/s", value: (run) => last(run.epochs)?.images_per_second ?? NaN, show: digits },
  ], runs);
  return [overview, html("div.charts", charts), numbers];
}

function trainingSection() {
  const charts = html("div.charts");
  const draw = (window) => {
    const linesOf = (key, noisy) => runs.flatMap((run, index) => {
      const { mean, min, max } = run.steps[key];
      const points = run.steps.step.map((step, place) => [step, mean[place] ?? NaN]);
      const path = min && points.flatMap(([x], place) => [[x, min[place] ?? NaN], [x, max[place] ?? NaN]]);
      const own = { color: color(index), points };
      if (!noisy) return [{ ...own, name: several ? run.name : "value", style: "", path }];
      const [raw, line] = several ? [run.name, run.name] : ["each step", "smoothed"];
      const smoothed = smooth(points, window * points.length);
      return [
        { ...own, name: raw, style: "faint", quiet: several, path },
        { ...own, name: line, style: "", points: smoothed },
      ];
    });
    const overSteps = (title, key, noisy = true) =>
      chart({ title, label: "step", log: noisy && isSteep(key), lines: linesOf(key, noisy) });
    const overEpochs = (title, ...values) => chart({ title, label: "epoch", lines: perEpoch(values) });
    const losses = (key) => [
      ["training", (epoch) => epoch[key]],
      ["validation", (epoch) => epoch.validation?.[key], several ? "dashed" : undefined],
    ];
    const { epochs } = runs[0];
    const stages = STAGES.map((name, index) => {
      const seconds = ({ spent, seconds }) => spent[name] ?? seconds - sum(Object.values(spent));
      const points = epochs.map((epoch) => [epoch.epoch, Math.max(seconds(epoch) || 0, 0)]);
      return { name: name === "data" ? "waiting for data" : name, color: color(index), points };
    });
    charts.replaceChildren(
      overSteps("Classification loss", "classification_loss"),
      overSteps("Box loss", "box_loss"),
      overSteps("Learning rate", "learning_rate", false),
      overSteps("Gradient norm before clipping", "gradient_norm"),
      overEpochs("Classification loss of each epoch", ...losses("classification_loss")),
      overEpochs("Box loss of each epoch", ...losses("box_loss")),
      overEpochs("Training speed (images per second)", ["images/s", (epoch) => epoch.images_per_second]));
    if (several || !epochs.length) return;
    charts.append(chart({ title: "Time per epoch (seconds, without validation)", label: "epoch", stacked: true, lines: stages }));
  };
  const range = { type: "range", id: "smoothing", min: 0, max: 0.2, step: 0.01, value: 0.03 };
  const input = html("input", { ...range, input: () => draw(Number(input.value)) });
  draw(range.value);
  const controls = html("p.controls", html("label", { for: "smoothing" }, "Smoothing "), input);
  return [runs.some(steps) ? controls : empty("The log contains no steps."), charts];
}

/** Whether the values of a number of the steps span so much that a logarithmic axis shows more. */
function isSteep(key) {
  const values = runs.flatMap((run) => run.steps[key].mean).filter((value) => value > 0).sort((a, b) => a - b);
  return values.length > 0 && values[Math.floor(0.99 * (values.length - 1))] > 15 * values[0];
}

function differencesSection() {
  const keys = [...new Set(runs.flatMap((run) => Object.keys(run.settings)))].sort();
  const rows = keys.filter((key) => new Set(runs.map((run) => run.settings[key])).size > 1);
  if (!rows.length) return [empty("All runs have the same configuration.")];
  return [table("differences of configuration", [{ name: "setting", value: (key) => key },
    ...runs.map((run) => ({ name: run.name, value: (key) => run.settings[key] ?? DASH }))], rows)];
}

function classesSection({ results: { classes } }) {
  const at = (name) => ({ best_f1 }) => best_f1?.[name] ?? NaN;
  const numbers = ["AP", "AP50", "AP75", "AR100"].map((name) => ({ name, value: (row) => metric(row[name]), show: fraction, bar: true }));
  return [remark("Score, F1, precision and recall are those of the score threshold with the best F1 at IoU 0.50."), table("classes", [
    { name: "class", value: (row) => row.name },
    { name: "objects", value: (row) => row.objects, show: count }, { name: "detections", value: (row) => row.detections, show: count },
    ...numbers, ...["score", "F1", "precision", "recall"].map((name) => ({ name, value: at(name.toLowerCase()), show: fraction })),
  ], classes)];
}

function curvesSection({ results: { curves, classes } }) {
  if (!curves.length) return [empty("No class has ground truth objects.")];
  const grid = html("div.charts.small");
  const filter = html("input", { type: "search", id: "filter", placeholder: "class name", input: () => draw(curves.length) });
  const more = html("button", { type: "button", click: () => draw(curves.length) }, "Show more classes");
  const draw = (max) => {
    const chosen = curves.filter((curve) => curve.name.toLowerCase().includes(filter.value.toLowerCase()));
    more.hidden = chosen.length <= max;
    const points = (values) => values.map((precision, index) => [index / 100, precision]);
    grid.replaceChildren(...chosen.slice(0, max).map(({ name, iou50, iou75, score }) => {
      const note = ([recall]) => (score ? `, score ${digits(score[Math.round(100 * recall)])}` : "");
      return chart({ title: name, small: true, range: [0, 1], lines: [
        { name: "IoU 0.75", style: "dashed", color: "c0", points: points(iou75) },
        { name: "IoU 0.50", style: "", color: "c0", points: points(iou50), note },
      ] });
    }));
  };
  draw(24);
  // Without the mean, which has no scores.
  const shown = curves.filter((curve) => curve.score).length;
  return [remark("Vertical axis: precision. Horizontal axis: recall. The area under a curve is its average precision. ",
    classes.length > shown ? `The ${counted(shown, "class", "classes")} with the most objects, of ${count(classes.length)}.` : ""),
  html("p.controls", html("label", { for: "filter" }, "Filter "), filter), grid, more];
}

function originSection(run) {
  const list = (rows) => html("dl", rows.map(([name, text]) => html("div", html("dt", name), html("dd", text))));
  const { results, sessions, config } = run;
  const data = results && `${counted(results.validation_images, "image")} with ${objectsOf(results)} in ${results.folder}`;
  return [
    list([["Folder", run.folder], ["Last change", time(run.updated)],
      ["Training time", `${duration(spent(run))}, without validation`], ["Validation data", data ?? DASH]]),
    sessions.flatMap((session, index) => [html("h3", index ? "Resumed" : "Started"), list([
      ["Time", time(session.started)], ["Command", session.command], ["Device", session.device],
      ["Program", session.program], ["libtorch", session.libtorch], ["CPU", session.cpu], ["Cores", session.cores],
      ["CUDA devices", session.cuda_devices]].map(([name, text]) => [name, String(text ?? DASH)]))]),
    config === null ? empty("No configuration.")
      : html("details", html("summary", "Configuration, including default values"), html("pre", { tabindex: 0 }, config)),
  ];
}

const objectsOf = ({ objects, classes }) => `${counted(objects, "object")} of ${counted(classes.length, "class", "classes")}`;

function facts(run) {
  const { AP, AP50, AP75 } = summary(run);
  const { results, epochs, planned_epochs: planned } = run;
  const { right = 0, objects = 0, detections = 0 } = results?.counts ?? {};
  const made = planned > epochs.length ? `${count(epochs.length)} of ${counted(planned, "epoch")}` : counted(epochs.length, "epoch");
  return [
    ["AP", fraction(AP), best(run) ? `best epoch: ${digits(best(run).epoch)}` : "no validation yet"],
    ["AP50", fraction(AP50), `AP75 ${fraction(AP75)}`],
    ["Best score threshold", right ? results.rule.score.toFixed(2) : DASH,
      `precision ${percent(right / detections)}, recall ${percent(right / objects)}`],
    ["Validation data", results ? counted(results.validation_images, "image") : DASH, results ? objectsOf(results) : ""],
    ["Trained for", made, counted(steps(run), "step") + (epochs.length ? ` in ${duration(spent(run))}` : "")],
  ];
}

/** Sections on one run: id, title, content. */
const DETAILS = [
  ["classes", "Classes", classesSection], ["curves", "Precision and recall", curvesSection],
  ["confusion", "Confusion matrix", confusionSection], ["images", "Images", imagesSection],
].map(([id, name, content]) => [id, name, (run) => (run.results ? content(run) : [empty("There are no results on the validation data yet.")])]);
DETAILS.push(["origin", "Configuration and machine", originSection]);
const SECTIONS = [["results", "Results", resultsSection], ["training", "Training", trainingSection]];
if (several) SECTIONS.push(["differences", "Differences of configuration", differencesSection]);

const sections = (list, run) => list.map(([id, name, content]) => html("section", { id }, html("h2", name), content(run)));
const details = html("div");
const showDetails = (run) => details.replaceChildren(...sections(DETAILS, run));
const choice = html("select", { id: "run", change: () => showDetails(runs[choice.selectedIndex]) },
  runs.map((run) => html("option", run.name)));
const title = several ? counted(runs.length, "run") : runs[0].name;
const notes = runs.flatMap((run) => run.notes.map((note) => (several ? `${run.name}: ${note}` : note)));
const fact = ([name, value, more]) => html("li", html("span.fact", name), html("strong", value), html("span.remark", more));

document.title = `${title}: training report`;
document.body.append(
  html("header", html("h1", title),
    remark(`Training report of RetinaNet detectors, written by ${program} on ${time(written)}. `,
      "Results are those of the best checkpoint on the validation data."),
    notes.length ? html("ul.notes", notes.map((note) => html("li", note))) : undefined,
    several ? undefined : html("ul.facts", facts(runs[0]).map(fact)),
    html("nav", [...SECTIONS, ...DETAILS].map(([id, name]) => html("a", { href: `#${id}` }, name)))),
  html("main", sections(SECTIONS),
    several ? html("p.controls.choice", html("label", { for: "run" }, "Details of run "), choice) : undefined, details),
  dialog);
showDetails(runs[0]);
