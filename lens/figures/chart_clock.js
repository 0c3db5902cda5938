const DIAL = 290; // the widest dial, in pixels
const TURN = 2 * Math.PI;
const TICK = 0.94; // where a mark inside the rim begins
const HANDS = ["hand", "spoke", "trace", "end"]; // the last one draws the rings in which traces end
const RING = "m-3.2 0a3.2 3.2 0 1 0 6.4 0a3.2 3.2 0 1 0-6.4 0";
const kindOf = (hand) => hand.kind ?? HANDS[0];

/** Hands on a dial, as angles in the complex plane: 0 to the right, growing upward. */
class Clock extends Things {
  get things() {
    return this.data.hands;
  }

  valueAxis() {
    return { range: [0, 360], scale: "linear" };
  }

  allValues() {
    return [];
  }

  upTitle() {
    return "";
  }

  acrossTitle() {
    return "";
  }

  layout() {
    const side = Math.min(this.width - 60, DIAL);
    this.radius = Math.floor(side / 2);
    this.centre = [Math.round(this.width / 2), this.radius + 26];
    this.height = 2 * this.radius + 52;
    this.box = { left: 0, right: this.width, top: 0, bottom: this.height };
    this.places = this.things.map((hand) => this.tip(hand));
  }

  tip({ angle, length }, beyond = 0) {
    const reach = length * this.radius + beyond;
    return [this.centre[0] + reach * Math.cos(angle), this.centre[1] - reach * Math.sin(angle)];
  }

  paint() {
    this.drawDial();
    const { groups } = this.data;
    const hands = pool(this.quiet("hands"), HANDS.length * groups.length, () => shape("path"));
    groups.forEach((group, k) => HANDS.forEach((kind, m) => {
      const d = this.things.map((hand, n) => (hand.group === k ? this.handTo(n, kind) : "")).join("");
      put(hands[HANDS.length * k + m], { d, stroke: this.view.seen(group.colour), class: `lens-chart-${kind}` });
    }));
    this.drawMarks(this.svg);
    put(this.parts.marks, { "aria-hidden": "true" });
    this.nameTips();
    this.quiet("controls");
    this.quiet("labels");
    this.quiet("front");
  }

  handTo(n, kind) {
    const found = kindOf(this.things[n]);
    if (kind === "end") return found === "trace" ? `M${at(this.places[n])}${RING}` : "";
    return found === kind ? `M${at(this.centre)}L${at(this.places[n])}` : "";
  }

  /** Letters beyond the tips of spokes and traces; those of one place stand in one text. */
  nameTips() {
    const places = new Map();
    const named = this.things.filter(({ mark }) => mark).length;
    this.things.forEach((hand, n) => {
      if (!hand.mark) return;
      const place = at(this.places[n].map(Math.round));
      const [x, y] = this.tip(hand, 14);
      const here = places.get(place) ?? places.set(place, { x, y, marks: [] }).get(place);
      here.marks.push(tame(hand.mark));
    });
    const texts = pool(this.quiet("names"), places.size, () => shape("text", { "text-anchor": "middle" }));
    [...places.values()].forEach(({ x, y, marks }, n) => {
      put(texts[n], { x, y: y + 4 });
      say(texts[n], marks.length === named && named > 2 ? "all" : marks.join("·"));
    });
  }

  drawDial() {
    const [x, y] = this.centre;
    const r = this.radius;
    const [rim, cross, ticks] = pool(this.quiet("dial"), 3, (n) => shape(["circle.rule", "path.rule", "path.tick"][n]));
    put(ticks, { d: this.data.ticks.map((angle) => (
      `M${at(this.tip({ angle, length: TICK }))}L${at(this.tip({ angle, length: 1 }))}`)).join("") });
    put(rim, { cx: x, cy: y, r });
    put(cross, { d: `M${x - r} ${y}H${x + r}M${x} ${y - r}V${y + r}` });
    const names = [["0", 1, 0, "start"], ["π/2", 0, -1, "middle"], ["π", -1, 0, "end"], ["3π/2", 0, 1, "middle"]];
    const texts = pool(this.quiet("across"), names.length, () => shape("text"));
    names.forEach(([text, right, down, anchor], n) => {
      put(texts[n], { x: x + right * (r + 8), y: y + down * (r + 12) + 4, "text-anchor": anchor });
      say(texts[n], text);
    });
  }

  degrees({ angle }) {
    return `${Math.round((angle * 360) / TURN) % 360}°`;
  }

  spoken(hand) {
    const words = [this.degrees(hand), tame(hand.note), tame(this.data.groups[hand.group].name)];
    return `${tame(hand.label)}: ${words.filter(Boolean).join(", ")}`;
  }

  label() {
    const { title, here } = this.data;
    const mean = here ? `${tame(here.label)} ${this.degrees(here)}, length ${number(here.length)}` : "";
    return [tame(title), `${this.things.length} hands on a dial`, mean].filter(Boolean).join("; ");
  }

  destination({ key }, spot) {
    const inside = (n) => Math.min(this.things.length - 1, Math.max(0, n));
    return { ArrowLeft: inside(spot - 1), ArrowUp: inside(spot - 1), ArrowRight: inside(spot + 1), ArrowDown: inside(spot + 1),
      Home: 0, End: this.things.length - 1, PageUp: inside(spot - 5), PageDown: inside(spot + 5) }[key];
  }

  showAt() {
    if (!this.spots) return;
    const [here, chosen] = [this.here(), this.selected()];
    const { here: mean } = this.data;
    const to = (place) => `M${at(this.centre)}L${at(place)}`;
    const [sum, pointed, accent] = pool(this.part("controls"), 3, (n) => shape(["path.sum", "path.hover", "path.accent"][n]));
    put(sum, { d: mean ? arrow(this.centre, this.tip(mean)) : "" });
    put(pointed, { d: here === null || here === chosen ? "" : to(this.places[here]) });
    put(accent, { d: chosen === null ? "" : to(this.places[chosen]) });
    this.drawRings(here, chosen);
    const shown = here ?? chosen;
    const [name] = pool(this.part("labels"), 1, () => shape("text"));
    if (shown === null) say(name, "");
    else this.nameHand(name, this.things[shown], shown === chosen);
    this.showReadout(here);
  }

  /** The name of a hand beyond its tip, inside the picture. */
  nameHand(name, hand, isChosen) {
    const [x, y] = this.tip(hand, 14);
    const text = tame(hand.label);
    const width = 1.08 * this.text(text);
    const left = x >= this.centre[0] ? x : x - width;
    put(name, { x: Math.max(0, Math.min(left, this.width - width)), y: y + 4, class: isChosen ? "lens-chart-here-text" : "lens-chart-told" });
    say(name, text);
  }

  showReadout(spot) {
    const hand = spot === null ? null : this.things[spot];
    const { here } = this.data;
    say(this.at, hand ? tame(hand.label) : `${tame(this.data.name)} –`);
    const sum = { stroke: { d: "M-13 0H13", class: "lens-chart-sum" } };
    const mean = here ? [{ sample: sum, name: tame(here.label), value: tame(here.note) }] : [];
    const note = longest(this.things.map((one) => tame(one.note)));
    const said = [{ name: "angle", value: hand ? this.degrees(hand) : "–", room: 4 },
      ...(note ? [{ name: "", value: hand ? tame(hand.note) : "", room: note }] : [])];
    const legend = Object.keys(this.data.key).length ? this.keyRows() : this.groupRows();
    this.showEntries([...legend, ...mean, ...said]);
  }

  /** What kinds of hand there are: those that bear letters need no legend of their own. */
  keyRows() {
    const { groups, key } = this.data;
    const stroke = this.view.seen(groups[0].colour);
    const samples = {
      spoke: { stroke: { d: "M-13 0H8", class: "lens-chart-curve", stroke }, mark: { d: `M9 0${MARK.circle}`, fill: stroke, class: "lens-chart-mark" } },
      trace: { stroke: { d: "M-13 0H5", class: "lens-chart-curve lens-chart-traced", stroke },
        mark: { d: `M8 0${RING}`, class: "lens-chart-end", stroke } },
      tick: { stroke: { d: "M0-6V6", class: "lens-chart-tick" } },
    };
    return Object.entries(key).map(([kind, name]) => ({ sample: samples[kind], name: tame(name) }));
  }
}

/** A line with a head, which is left out where the line is too short for one. */
function arrow([x0, y0], [x1, y1]) {
  const long = Math.hypot(x1 - x0, y1 - y0);
  const line = `M${x0} ${y0}L${x1.toFixed(1)} ${y1.toFixed(1)}`;
  if (long < 8) return line;
  const [u, v] = [(6 * (x1 - x0)) / long, (6 * (y1 - y0)) / long];
  return `${line}m${(-u - v * 0.7).toFixed(1)} ${(-v + u * 0.7).toFixed(1)}L${x1.toFixed(1)} ${y1.toFixed(1)}l${(-u + v * 0.7).toFixed(1)} ${(-v - u * 0.7).toFixed(1)}`;
}
