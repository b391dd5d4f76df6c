// An image with its boxes on a canvas.

/** Small images are enlarged at most by this factor. */
const MAX_ZOOM = 4;

/** Maximum height of the canvas, as a fraction of the window's; and the height in pixels that it may always have. */
const MAX_HEIGHT = 0.72;
const MIN_HEIGHT = 260;

const TAG_HEIGHT = 17;

/** The color of a class, as in `runtime::draw::color`, and black or white for text on it. */
export function colorOf(classIndex) {
  const hue = ((classIndex % 360) * 137.50777) % 360;
  const [saturation, value] = [[0.85, 1], [1, 0.7], [0.55, 1]][classIndex % 3];
  const channels = [5, 3, 1].map((n) => {
    const k = (n + hue / 60) % 6;
    return Math.round(255 * (value - value * saturation * Math.min(Math.max(Math.min(k, 4 - k), 0), 1)));
  });
  const [red, green, blue] = channels.map((channel) => (channel / 255) ** 2.2);
  const isLight = 0.2126 * red + 0.7152 * green + 0.0722 * blue > 0.179;
  return { css: `rgb(${channels.join(" ")})`, contrast: isLight ? "#000" : "#fff" };
}

/**
 * Draws an image of `width` by `height` pixels, scaled to the place there is, and `boxes` in its pixels, the first on top:
 * `{box: [x1, y1, x2, y2], text, color, isSelected, isFaded}`. Lines and texts have the same size on every image. Without
 * `bitmap` the image is blank.
 */
export function drawBoxes(canvas, { width, height, bitmap, boxes, maxWidth }) {
  const maxHeight = Math.max(innerHeight * MAX_HEIGHT, MIN_HEIGHT);
  const zoom = Math.min(maxWidth / width, maxHeight / height, MAX_ZOOM);
  const size = { width: width * zoom, height: height * zoom };
  canvas.style.width = `${size.width}px`;
  canvas.style.height = `${size.height}px`;
  canvas.width = Math.max(Math.round(size.width * devicePixelRatio), 1);
  canvas.height = Math.max(Math.round(size.height * devicePixelRatio), 1);
  const context = canvas.getContext("2d");
  context.scale(canvas.width / size.width, canvas.height / size.height);
  context.imageSmoothingQuality = "high";
  if (bitmap) context.drawImage(bitmap, 0, 0, size.width, size.height);
  const order = [...boxes].reverse().sort((a, b) => a.isSelected - b.isSelected);
  const scaled = order.map((one) => ({ ...one, box: one.box.map((corner) => corner * zoom) }));
  // No line crosses a tag.
  for (const one of scaled) outline(context, one);
  for (const one of scaled) tag(context, one, size);
}

/** A frame with a thin rim on both sides, which is visible on a background of the same color. */
function outline(context, { box: [x1, y1, x2, y2], color, isFaded }) {
  for (const [style, width, alpha] of [[color.contrast, 4, 0.5], [color.css, 2, 1]]) {
    context.globalAlpha = isFaded ? alpha / 4 : alpha;
    context.strokeStyle = style;
    context.lineWidth = width;
    context.strokeRect(x1, y1, x2 - x1, y2 - y1);
  }
}

/** Above the box, or inside it if there is no room above; moved to stay inside the image. */
function tag(context, { box: [x1, y1], text, color, isFaded }, size) {
  context.font = "600 12px system-ui, sans-serif";
  context.textBaseline = "middle";
  const width = context.measureText(text).width + 8;
  const left = Math.max(Math.min(x1 - 1, size.width - width), 0);
  const top = Math.max(Math.min(y1 >= TAG_HEIGHT ? y1 - TAG_HEIGHT : y1, size.height - TAG_HEIGHT), 0);
  context.globalAlpha = isFaded ? 0.25 : 1;
  context.fillStyle = color.css;
  context.fillRect(left, top, width, TAG_HEIGHT);
  context.fillStyle = color.contrast;
  context.fillText(text, left + 4, top + TAG_HEIGHT / 2 + 0.5);
}
