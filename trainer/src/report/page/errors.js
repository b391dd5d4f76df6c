// The confusion matrix, and images with their boxes.

/** Describes a cell of the confusion matrix. */
const confusion = ({ classes }, { truth, prediction }) => {
  const name = (index) => classes[index].name;
  if (truth === undefined) return `${name(prediction)} without an object`;
  if (prediction === undefined) return `${name(truth)} missed`;
  return truth === prediction ? `${name(truth)} found` : `${name(truth)} detected as ${name(prediction)}`;
};

function confusionSection({ results }) {
  const { classes, confusions, rule } = results;
  const open = (cell) => openImages(results, `${count(cell.count)} × ${confusion(results, cell)}`, cell.images);
  // A browser is slow with long tables.
  const errors = confusions.filter((cell) => cell.truth !== cell.prediction).slice(0, 200);
  const list = errors.length ? table("errors", [
    { name: "error", value: (cell) => confusion(results, cell) }, { name: "count", value: (cell) => cell.count, show: count },
    { name: "of all", value: (cell) => cell.count / cell.row_total, show: percent, bar: true },
  ], errors, open) : empty("There are no errors.");
  const explanation = remark(
    `Objects and detections with an IoU of at least ${rule.iou} are paired regardless of their classes, highest IoU first. `,
    `Only detections with a score of at least ${rule.score.toFixed(2)} count. “Background” counts missed objects and `,
    "detections without an object. Press a number to see its images; cells are shaded by their fraction of the row.");
  if (classes.length > 30) return [explanation, list];
  const names = [...classes.map((row) => row.name), "background"];
  const indices = [...classes.keys(), undefined];
  const cellOf = (truth, prediction) => {
    const cell = confusions.find((one) => one.truth === truth && one.prediction === prediction);
    if (truth === undefined && prediction === undefined) return html("td.none");
    if (!cell) return html("td.zero", "0");
    const part = cell.count / cell.row_total;
    const title = `${count(cell.count)} of ${count(cell.row_total)}: ${confusion(results, cell)}`;
    const kind = `${truth === prediction ? "right" : "wrong"} ${part > 0.55 ? "strong" : ""}`;
    return html("td", { class: kind, style: `--fraction:${part.toFixed(3)}` },
      html("button", { type: "button", title, "aria-label": title, click: () => open(cell) }, count(cell.count)));
  };
  const head = names.map((name) => html("th", { scope: "col", title: name }, html("span", name)));
  const rows = indices.map((truth, row) => html("tr",
    html("th", { scope: "row", title: names[row] }, names[row]), indices.map((prediction) => cellOf(truth, prediction))));
  return [explanation, html("div", { class: "beside" },
    html("div.scroll", { tabindex: 0 }, html("table.matrix", { "aria-label": "confusion matrix" },
      html("thead", html("tr", html("th.corner", "objects ↓ detected as →"), head)), html("tbody", rows))), list)];
}

const area = ([x1, y1, x2, y2]) => Math.max(x2 - x1, 0) * Math.max(y2 - y1, 0);
const common = (a, b) => area([Math.max(a[0], b[0]), Math.max(a[1], b[1]), Math.min(a[2], b[2]), Math.min(a[3], b[3])]);
const iou = (a, b) => common(a, b) / (area(a) + area(b) - common(a, b) || Infinity);

/** Pairs the objects of an image with its detections of at least `score`, as the confusion matrix does. */
function judge({ objects, detections }, rule, score) {
  const real = objects.filter((object) => !object.crowd);
  const shown = detections.filter((detection) => detection.score >= score);
  const pairs = real.flatMap((object) => shown.map((detection) => ({ object, detection, iou: iou(object.box, detection.box) })));
  const [objectOf, found] = [new Map(), new Set()];
  for (const pair of pairs.filter((one) => one.iou > 0 && one.iou >= rule.iou).sort((a, b) => b.iou - a.iou)) {
    if (objectOf.has(pair.detection) || found.has(pair.object)) continue;
    objectOf.set(pair.detection, pair.object);
    found.add(pair.object);
  }
  const ignored = (detection) => !objectOf.has(detection) && objects.some((object) => object.crowd && object.class === detection.class &&
    common(object.box, detection.box) >= rule.iou * area(detection.box));
  const counted = shown.filter((detection) => !ignored(detection));
  const isRight = (detection) => objectOf.get(detection)?.class === detection.class;
  const errors = [
    ...real.filter((object) => !found.has(object)).map((object) => ({ truth: object.class })),
    ...counted.filter((one) => !isRight(one)).map((one) => ({ truth: objectOf.get(one)?.class, prediction: one.class })),
  ];
  return { real, counted, isRight, errors, right: counted.filter(isRight).length };
}

/** An image with its boxes and the most frequent kinds of its errors, and a function that shows the detections of at least a score. */
function imageFigure(results, index, kindsShown = 4) {
  const image = results.images[index];
  const { width, height, jpeg, name } = image;
  const [boxes, caption, size] = [svg("g"), html("span"), Math.max(width, height) / 26];
  const rect = (kind, [x, y, right, bottom]) =>
    svg("rect", { class: kind, x, y, width: Math.max(right - x, 0), height: Math.max(bottom - y, 0) });
  const tag = (kind, [x, y], text) =>
    svg("text", { class: kind, x, y: Math.max(y - 0.3 * size, 0.9 * size), "font-size": size, "stroke-width": size / 4 }, text);
  const update = (score, parts = { truth: true, detections: true }) => {
    const { real, counted: shown, isRight, errors, right } = judge(image, results.rule, score);
    const f1 = real.length + shown.length ? (2 * right) / (real.length + shown.length) : 1;
    boxes.replaceChildren(
      ...(parts.truth ? image.objects.flatMap(({ box }) => [rect("truth under", box), rect("truth", box)]) : []),
      ...(parts.detections ? [...shown].reverse().flatMap((one) => {
        const kind = isRight(one) ? "right" : "wrong";
        return [rect(`found ${kind}`, one.box), tag(kind, one.box, `${results.classes[one.class].name} ${one.score.toFixed(2)}`)];
      }) : []));
    const kinds = new Map();
    for (const text of errors.map((error) => confusion(results, error))) kinds.set(text, (kinds.get(text) ?? 0) + 1);
    const texts = [...kinds].sort((a, b) => b[1] - a[1]).map(([text, times]) => (times > 1 ? `${times} × ${text}` : text));
    const found = `${count(right)} of ${counted(real.length, "object")} found`;
    caption.replaceChildren(`F1 ${f1.toFixed(2)}: ${found}, ${counted(shown.length - right, "false positive")}`,
      html("span.errors", texts.slice(0, kindsShown).join(", ") + (texts.length > kindsShown ? ", and more" : "")));
  };
  const shownImage = jpeg
    ? svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `${name} with boxes` },
      svg("image", { href: `data:image/jpeg;base64,${jpeg}`, width, height, preserveAspectRatio: "none" }), boxes)
    : empty(`Cannot show the image: ${image.problem}`);
  update(results.rule.score);
  return { node: html("figure.image", shownImage, html("figcaption", html("b", name), caption)), update };
}

const legend = () => remark(html("span.key.frame.right", "correct detection"),
  html("span.key.frame.wrong", "wrong detection"), html("span.key.truth", "ground truth"));
const dialog = html("dialog", { "aria-labelledby": "shown", click: (event) => { if (event.target === dialog) dialog.close(); } });

/** Opens the images of a cell of the confusion matrix. */
function openImages(results, title, indices) {
  dialog.replaceChildren(
    html("button.close", { type: "button", click: () => dialog.close() }, "Close"), html("h3", { id: "shown" }, title), legend(),
    html("div.images", indices.map((index) => imageFigure(results, index, Infinity).node)),
    indices.length ? "" : empty("The report contains none of its images."));
  dialog.showModal();
}

function imagesSection({ results }) {
  const { rule, best: good, worst } = results;
  const groups = [["Worst", worst, "No image has errors."], ["Best", good, "No object was found in any image."]]
    .map(([title, indices, none]) => [title, indices.map((index) => imageFigure(results, index)), none]);
  const output = html("output", { for: "score" });
  const update = () => {
    output.textContent = Number(score.value).toFixed(2);
    const parts = { truth: truth.checked, detections: found.checked };
    groups.flatMap(([, figures]) => figures).forEach((figure) => figure.update(Number(score.value), parts));
  };
  const score = html("input", { type: "range", id: "score", min: 0, max: 1, step: 0.01, value: rule.score, input: update });
  const [truth, found] = ["truth", "detections"].map((id) => html("input", { type: "checkbox", id, checked: "", change: update }));
  update();
  return [
    remark(`Images ranked by F1 at IoU ${rule.iou}, counting detections with a score of at least ${rule.score.toFixed(2)}. `,
      "The slider shows other thresholds."), legend(),
    html("p.controls", html("label", { for: "score" }, "Minimum score "), score, output,
      html("label", truth, "ground truth"), html("label", found, "detections")),
    ...groups.flatMap(([title, figures, none]) =>
      [html("h3", title), figures.length ? html("div.images", figures.map((figure) => figure.node)) : empty(none)]),
  ];
}
