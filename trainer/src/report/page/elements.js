"use strict";
// Draws the report from the data in the page: elements, numbers, tables. Texts enter the page as text nodes only, so a name
// cannot become markup.

const { program, written, runs } = JSON.parse(document.getElementById("data").textContent);
const several = runs.length > 1;
const DASH = "–";
/** Stages of the training time. The time outside of the others has no number. */
const STAGES = ["data", "forward", "backward", "optimizer", "other"];

/** A function that creates elements: `("tag.class", attributes, ..children)`, attributes may be missing. Attributes that are functions
 * are listeners; undefined ones are left out, as are undefined children. */
const creator = (namespace) => (name, ...content) => {
  const [tag, ...classes] = name.split(".");
  const node = document.createElementNS(namespace, tag);
  if (classes.length) node.setAttribute("class", classes.join(" "));
  const attributes = content[0]?.constructor === Object ? content.shift() : {};
  for (const [key, value] of Object.entries(attributes)) {
    if (typeof value === "function") node.addEventListener(key, value);
    else if (value !== undefined) node.setAttribute(key, value);
  }
  node.append(...content.flat(2).filter((child) => child !== undefined));
  return node;
};
const html = creator("http://www.w3.org/1999/xhtml");
const svg = creator("http://www.w3.org/2000/svg");

const isNumber = (value) => Number.isFinite(value);
/** A metric; NaN for -1, the result without objects. */
const metric = (value) => (value >= 0 ? value : NaN);
const fraction = (value) => (value >= 0 ? value.toFixed(4) : DASH);
const percent = (value) => (isNumber(value) ? `${Math.round(100 * value)}\u202f%` : DASH);
const count = (value) => String(value).replace(/\B(?=(\d{3})+$)/g, "\u202f");
const counted = (value, one, many = `${one}s`) => `${count(value)} ${value === 1 ? one : many}`;
const digits = (value) => {
  if (!isNumber(value)) return DASH;
  const [short, size] = [Number(value.toPrecision(4)), Math.abs(value)];
  return size !== 0 && (size < 1e-3 || size >= 1e6) ? short.toExponential() : String(short);
};
const duration = (seconds) => {
  if (!isNumber(seconds)) return DASH;
  const [hours, minutes, rest] = [seconds / 3600, (seconds / 60) % 60, seconds % 60].map(Math.floor);
  if (hours) return `${hours} h ${minutes} min`;
  return minutes ? `${minutes} min ${rest} s` : `${rest} s`;
};
const time = (seconds) =>
  isNumber(seconds) ? `${new Date(1000 * seconds).toISOString().slice(0, 19).replace("T", " ")} UTC` : DASH;
const sum = (values) => values.filter(isNumber).reduce((total, value) => total + value, 0);
const last = (list) => list[list.length - 1];
const remark = (...text) => html("p.remark", ...text);
const empty = (text) => html("p.empty", text);
const color = (index) => `c${index % 8}`;

/** A table that sorts by a column when its header is pressed. Columns: `name`, `value(row)`, `show(value)`, `bar`. */
function table(name, fields, rows, open) {
  const body = html("tbody");
  const lines = rows.map((row) => {
    const cells = fields.map(({ value, show = String, bar, key }, index) => {
      const content = value(row);
      const style = bar && `--fraction:${(100 * Math.min(Math.max(content, 0), 1) || 0).toFixed(1)}%`;
      const text = open && index === 0 ? html("button", { type: "button", click: () => open(row) }, show(content)) : show(content);
      const own = index ? {} : { scope: "row", title: show(content) };
      return html(index ? "td" : "th", { class: bar ? "bar" : key?.(row), style, ...own }, text);
    });
    return { row, node: html("tr", cells) };
  });
  const headers = fields.map(({ name: title, value }) => {
    const isText = typeof value(rows[0]) === "string";
    const sort = () => {
      const before = header.getAttribute("aria-sort");
      const up = before === "none" ? isText : before === "descending";
      headers.forEach((other) => other.setAttribute("aria-sort", "none"));
      header.setAttribute("aria-sort", up ? "ascending" : "descending");
      const order = ({ row: a }, { row: b }) => {
        const [first, second] = [value(a), value(b)];
        if (isText) return (up ? 1 : -1) * String(first).localeCompare(second, undefined, { numeric: true });
        return (isNumber(second) - isNumber(first)) || (up ? first - second : second - first);
      };
      body.append(...[...lines].sort(order).map((line) => line.node));
    };
    const attributes = { scope: "col", "aria-sort": "none", class: isText ? "text" : undefined };
    const header = html("th", attributes, html("button", { type: "button", click: sort }, title));
    return header;
  });
  body.append(...lines.map((line) => line.node));
  return html("div", { class: rows.length > 25 ? "scroll long" : "scroll", tabindex: 0 },
    html("table.sortable", { "aria-label": name }, html("thead", html("tr", headers)), body));
}
