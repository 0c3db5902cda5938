/** Numbers as texts, ticks of axes, and places between two ends. */

const known = (value) => value !== null && value !== undefined;
const minus = (text) => text.replace("-", "\u2212"); // as wide as a digit
const power = (n) => `10${[...String(n)].map((c) => "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"["-0123456789".indexOf(c)]).join("")}`;

const GROUPED = new Intl.NumberFormat("en-US");

/** Three significant digits, or all of a whole number. */
function number(value) {
  if (!known(value)) return "—";
  const size = Math.abs(value);
  if (Number.isInteger(value) || size >= 1000) return minus(GROUPED.format(Math.round(value)));
  if (size >= 0.001) return minus(value.toPrecision(3));
  const [digits, exponent] = value.toExponential(1).split("e");
  return `${minus(digits)}·${power(Number(exponent))}`;
}

const titled = ({ title, unit }) => (unit ? `${tame(title)} (${tame(unit)})` : tame(title));
const withUnit = (text, { unit }) => (unit ? `${text}${unit === "°" ? "" : "\u00a0"}${tame(unit)}` : text);

/** A writer of an axis' values, all with the same decimals, so that they stand under each other and do not dance. */
function evenly({ range, scale }, values) {
  if (scale === "log") return number;
  const most = 0.999 * Math.max(...range.map(Math.abs));
  const size = Math.floor(Math.log10(most));
  const fine = most < 1 ? Math.min(9, 2 - size) : Math.max(0, 3 - Math.max(1, size));
  const digits = values.every((value) => !known(value) || Number.isInteger(value)) ? 0 : fine;
  const format = new Intl.NumberFormat("en-US", { minimumFractionDigits: digits, maximumFractionDigits: digits });
  return (value) => {
    const vanishes = !known(value) || (value !== 0 && Math.abs(value) < 0.5 * 10 ** -digits);
    return vanishes ? number(value) : minus(format.format(value));
  };
}

/** Round numbers between two ends, at most `most` of them; only whole ones where the data are. */
function ticks([low, high], scale, most, whole = false) {
  if (scale === "log") return decades(low, high, most);
  const raw = (high - low) / Math.max(1, most - 1);
  const unit = 10 ** Math.floor(Math.log10(raw));
  const rough = unit * [1, 2, 5, 10].find((factor) => factor * unit >= raw * (1 - 1e-9));
  const step = whole ? Math.max(1, rough) : rough;
  const digits = Math.max(0, -Math.floor(Math.log10(step) + 1e-9));
  const first = Math.ceil(low / step - 1e-9);
  const count = Math.floor(high / step + 1e-9) - first + 1;
  return Array.from({ length: Math.max(0, count) }, (_, n) => {
    const value = (first + n) * step || 0; // no -0
    const text = value.toLocaleString("en-US", { minimumFractionDigits: digits, maximumFractionDigits: digits });
    return { value, text: minus(text) };
  });
}

function decades(low, high, most) {
  const [from, to] = [Math.floor(Math.log10(low) + 1e-9), Math.floor(Math.log10(high) + 1e-9)];
  const every = Math.max(1, Math.ceil((to - from + 1) / most));
  const factors = 3 * (to - from + 1) <= most + 2 ? [1, 2, 5] : [1];
  const found = [];
  for (let n = from; n <= to; n += every) {
    const far = n < -3 || n > 4;
    for (const factor of far ? [1] : factors) {
      const value = Number(`${factor}e${n}`);
      if (value < low * (1 - 1e-9) || value > high * (1 + 1e-9)) continue;
      found.push({ value, text: far ? power(n) : value.toLocaleString("en-US", { maximumFractionDigits: 3 }) });
    }
  }
  return found;
}

/** Where a value lies between two ends, 0..1 inside; undefined where there is none. */
function share(value, { range: [low, high], scale }) {
  if (!known(value) || (scale === "log" && value <= 0)) return undefined;
  return scale === "log" ? Math.log(value / low) / Math.log(high / low) : (value - low) / (high - low);
}

const nearest = (values, wanted) => values.reduce(
  (best, value, n) => (Math.abs(value - wanted) < Math.abs(values[best] - wanted) ? n : best), 0);
