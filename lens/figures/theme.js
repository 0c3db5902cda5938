/**
 * What every widget of the suite shares: the page's theme, colours that are seen on it, text that cannot act, and a
 * model for pages without a kernel. Python puts this text before a widget's own, so that the two are one module.
 */

const DEEP = [15, 76, 138];
const BRIGHT = [119, 187, 255];
const WHITE = [255, 255, 255];
// With an ink this near to black, the better of the two inks has a contrast of at least sqrt(1.05 / 0.0515) = 4.51
// on any colour there is. At #111 it would only be 4.35.
const BLACK = [5, 5, 5];
const STEPS = 256;
const SVG = "http://www.w3.org/2000/svg";
const THEME_ATTRIBUTES = ["data-jp-theme-light", "data-jp-theme-name", "data-vscode-theme-kind", "theme", "class"];

// ── Colour ──────────────────────────────────────────────────────────────────────────────────────────────────────

const linear = (c) => (c <= 10.31475 ? c / 3294.6 : ((c / 255 + 0.055) / 1.055) ** 2.4);
const curve = (v) => (v <= 0.0031308 ? 12.92 * v : 1.055 * v ** (1 / 2.4) - 0.055);
const gamma = (v) => Math.round(255 * Math.min(1, Math.max(0, curve(v))));
const css = (rgb) => `rgb(${rgb.join(",")})`;
const dot = (rows, v) => rows.map((row) => row[0] * v[0] + row[1] * v[1] + row[2] * v[2]);

/** sRGB bytes to OKLab, where equal steps look equal. */
function toLab(rgb) {
  const cones = dot([[0.4122214708, 0.5363325363, 0.0514459929], [0.2119034982, 0.6806995451, 0.1073969566],
    [0.0883024619, 0.2817188376, 0.6299787005]], rgb.map(linear)).map(Math.cbrt);
  return dot([[0.2104542553, 0.7936177850, -0.0040720468], [1.9779984951, -2.4285922050, 0.4505937099],
    [0.0259040371, 0.7827717662, -0.8086757660]], cones);
}

function fromLab(lab) {
  const cones = dot([[1, 0.3963377774, 0.2158037573], [1, -0.1055613458, -0.0638541728],
    [1, -0.0894841775, -1.2914855480]], lab).map((v) => v ** 3);
  return dot([[4.0767416621, -3.3077115913, 0.2309699292], [-1.2684380046, 2.6097574011, -0.3413193965],
    [-0.0041960863, -0.7034186147, 1.7076147010]], cones).map(gamma);
}

const luminance = (rgb) => dot([[0.2126, 0.7152, 0.0722]], rgb.map(linear))[0];

/** WCAG contrast ratio of two sRGB colours. */
export function contrast(a, b) {
  const [low, high] = [luminance(a), luminance(b)].sort((x, y) => x - y);
  return (high + 0.05) / (low + 0.05);
}

export const isDark = (surface) => luminance(surface) < 0.18;

/** The magnitude ramp from the page's surface to blue: for each step a background and the ink that reads best on it. */
export function palette(surface, deepest = isDark(surface) ? BRIGHT : DEEP) {
  const [from, to] = [toLab(surface), toLab(deepest)];
  return Array.from({ length: STEPS }, (_, step) => {
    const background = fromLab(from.map((v, axis) => v + ((to[axis] - v) * step) / (STEPS - 1)));
    const ink = contrast(background, BLACK) > contrast(background, WHITE) ? BLACK : WHITE;
    return { background, ink };
  });
}

/** The colour that is really behind an element: the first ancestor that paints one. */
function surfaceOf(element) {
  for (let node = element; node; node = node.parentElement ?? node.getRootNode().host) {
    const colour = getComputedStyle(node).backgroundColor;
    const [r, g, b, alpha = 1] = (colour.match(/[\d.]+(?:e-\d+)?/g) ?? []).map(Number);
    if (/^rgb/.test(colour) && alpha > 0.5) return [r, g, b];
    if (/^color\(srgb /.test(colour) && alpha > 0.5) return [r, g, b].map((v) => Math.round(255 * v));
  }
  // Nobody paints: then the browser's own canvas shows, which is dark only for a page that says it can be.
  const canBeDark = getComputedStyle(document.documentElement).colorScheme.includes("dark");
  return canBeDark && matchMedia("(prefers-color-scheme: dark)").matches ? [18, 18, 18] : WHITE;
}

/** Calls `look` whenever the page may have changed its theme. Returns a function that stops it. */
function watchTheme(look) {
  const scheme = matchMedia("(prefers-color-scheme: dark)");
  scheme.addEventListener("change", look);
  const themes = new MutationObserver(() => requestAnimationFrame(look));
  for (const node of [document.documentElement, document.body]) {
    themes.observe(node, { attributes: true, attributeFilter: THEME_ATTRIBUTES });
  }
  return () => {
    scheme.removeEventListener("change", look);
    themes.disconnect();
  };
}

// ── Numbers ─────────────────────────────────────────────────────────────────────────────────────────────────────

const ARRAYS = { uint8: Uint8Array, uint16: Uint16Array, uint32: Uint32Array, float32: Float32Array };

/**
 * {dtype, shape, data} to a typed array. Data are little-endian: a DataView, an ArrayBuffer or base64 text. With a
 * scale they are steps of that size above `low`; a stored integer equal to `missing` is an unknown value, here NaN.
 */
function decode({ dtype, data, scale, low = 0, missing }) {
  const bytes = typeof data === "string" ? Uint8Array.from(atob(data), (c) => c.charCodeAt(0))
    : data instanceof ArrayBuffer ? new Uint8Array(data)
      : new Uint8Array(data.buffer, data.byteOffset, data.byteLength);
  const stored = new ARRAYS[dtype](bytes.slice().buffer); // the copy aligns: a message's buffers may start at any byte
  if (scale === undefined && missing === undefined) return stored;
  return Float32Array.from(stored, (v) => (v === missing ? NaN : low + v * (scale ?? 1)));
}

// ── Text, focus and a model without a kernel ────────────────────────────────────────────────────────────────────

/** Format characters could turn or hide the text around them. Python spells them so too; a hand-made page may not. */
const tame = (text) => text.replace(/\p{Cf}/gu, (character) => {
  const code = character.codePointAt(0).toString(16).toUpperCase();
  return `<U+${code.padStart(4, "0")}>`;
});

/**
 * How a widget makes its elements: with maker("lens-grid"), make("p.key") is <p class="lens-grid-key">. Children are
 * nodes or text, never markup.
 */
const maker = (prefix) => (what, attributes = {}, ...children) => {
  const [tag, kind] = what.split(".");
  const element = document.createElement(tag);
  if (kind) element.className = `${prefix}-${kind}`;
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
};

/** Gives the notebook cell around a widget its focus back; elsewhere nobody has it. */
function letGo(root) {
  const cell = root.closest(".jp-Cell[tabindex], .jp-Notebook[tabindex]");
  if (cell) cell.focus();
  else root.getRootNode().activeElement?.blur();
}

/** The part of a widget model that the view needs, over a plain object. */
function plainModel(state) {
  const handlers = new Map();
  return {
    get: (name) => state[name],
    set(name, value) {
      state[name] = value;
      handlers.get(`change:${name}`)?.forEach((handler) => handler());
    },
    on: (event, handler) => handlers.set(event, [...(handlers.get(event) ?? []), handler]),
    off: (event, handler) => handlers.set(event, (handlers.get(event) ?? []).filter((other) => other !== handler)),
    save_changes() {},
    send() {},
  };
}
