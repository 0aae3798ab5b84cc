/** Plots of the last minute: active connections, deliveries per second and median latency. */

const SECONDS = 60;
const [WIDTH, HEIGHT, TOP] = [300, 72, 12];
const SVG = "http://www.w3.org/2000/svg";

export class Plots {
  #connections = 0;
  #deliveries = 0;
  #latencies = [];
  #series = { active: [], deliveries: [], latency: [] };

  constructor() {
    this.#draw();
    setInterval(() => this.#tick(), 1000);
  }

  connections(count) {
    this.#connections = count;
  }

  delivered(count = 1) {
    this.#deliveries += count;
  }

  latency(ms) {
    this.#latencies.push(ms);
  }

  /** Add the values of the last second to the plots. */
  #tick() {
    const sorted = this.#latencies.sort((a, b) => a - b);
    this.#add("active", this.#connections);
    this.#add("deliveries", this.#deliveries);
    this.#add("latency", sorted.length ? sorted[sorted.length >> 1] : null);
    this.#deliveries = 0;
    this.#latencies = [];
    this.#draw();
  }

  #add(name, value) {
    const series = this.#series[name];
    series.push(value);
    if (series.length > SECONDS) series.shift();
    const last = series.findLast((one) => one !== null);
    const most = Math.max(...series.filter((one) => one !== null));
    document.querySelector(`#${name}`).textContent =
      last === undefined ? "–" : `${last} (peak ${most})`;
  }

  #draw() {
    for (const [name, series] of Object.entries(this.#series)) {
      const svg = document.querySelector(`[data-plot=${name}]`);
      svg.setAttribute("viewBox", `0 0 ${WIDTH} ${HEIGHT}`);
      svg.setAttribute("preserveAspectRatio", "none");
      const highest = Math.max(1, ...series.filter((value) => value !== null));
      const y = (value) => HEIGHT - 1 - (value / highest) * (HEIGHT - TOP);
      const x = (index) => ((index + SECONDS - series.length) / (SECONDS - 1)) * WIDTH;
      const points = series.map((value, index) => value === null ? "" : `${x(index)},${y(value)}`).filter(Boolean);
      if (points.length === 1) points.push(points[0]); // a line of one point is drawn as a dot
      svg.replaceChildren(
        shape("line", { x1: 0, x2: WIDTH, y1: HEIGHT - 1, y2: HEIGHT - 1 }),
        shape("line", { x1: 0, x2: WIDTH, y1: TOP, y2: TOP, "stroke-dasharray": "2 4" }),
        shape("polyline", { points: points.join(" ") }),
      );
    }
  }
}

function shape(name, attributes) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}
