"use strict";
// Sorting, filtering and charts of the leaderboard page. Text from files only ever becomes textContent.
(() => {
  const root = document.documentElement;
  const SVG = "http://www.w3.org/2000/svg";
  const COLOURS = 8;
  const DASHES = ["", "6 4", "2 3"];

  const make = (parent, name, attributes = {}, text = null) => {
    const element = parent instanceof SVGElement || name === "svg"
      ? document.createElementNS(SVG, name) : document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    if (text !== null) element.textContent = text;
    parent.append(element);
    return element;
  };
  const colour = (index) => `var(--c${index % COLOURS})`;
  const dash = (index) => DASHES[Math.floor(index / COLOURS) % DASHES.length];
  const number = (value) => {
    const size = Math.abs(value);
    if (size !== 0 && (size < 1e-3 || size >= 1e6)) return value.toExponential(2);
    return String(Number(value.toPrecision(size >= 1000 ? 6 : 4)));
  };
  const ticks = (low, high, count) => {
    const rough = (high - low) / count || 1;
    const power = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 5, 10].find((factor) => factor * power >= rough) * power;
    const result = [];
    for (let k = Math.ceil(low / step - 1e-9); k * step <= high + 1e-9 * step; k += 1) result.push(Number((k * step).toPrecision(12)));
    return result;
  };

  // Tables -----------------------------------------------------------------------------------------------------------
  const key = (row, column) => {
    const cell = row.cells[column];
    return "value" in cell.dataset ? Number(cell.dataset.value) : cell.textContent.trim();
  };
  const compare = (a, b) => (typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b)));
  // The row that heads a protocol is none of them.
  const rowsOf = (body) => [...body.rows].filter((row) => !row.classList.contains("protocol"));
  // Rows are sorted within their protocol's tbody, unless mixing is asked for: then they stand in the first one, under
  // a caption that says so, until it is taken back.
  const mixed = document.getElementById("mixed");
  const homes = new Map();
  const sort = (table, column, descending) => {
    const heads = [...table.tHead.rows[0].cells];
    if (!heads[column]) return;
    const numeric = heads[column].classList.contains("number");
    const present = (value) => (numeric ? typeof value === "number" : value !== "");
    const order = (rows) => rows.map((row) => [key(row, column), row])
      .sort(([a], [b]) => present(b) - present(a) || (descending ? compare(b, a) : compare(a, b))).map(([, row]) => row);
    const rows = [...table.tBodies].flatMap(rowsOf);
    if (mixed.checked) {
      table.tBodies[0].append(...order(rows));
    } else {
      for (const body of table.tBodies) body.append(...order(rows.filter((row) => homes.get(row) === body)));
    }
    heads.forEach((head, index) => head.setAttribute("aria-sort", index !== column ? "none" : descending ? "descending" : "ascending"));
  };
  const tables = [...document.querySelectorAll("table.sortable")];
  for (const table of tables) {
    for (const body of table.tBodies) for (const row of rowsOf(body)) homes.set(row, body);
    [...table.tHead.rows[0].cells].forEach((head, column) => {
      head.firstElementChild.addEventListener("click", () => {
        const now = head.getAttribute("aria-sort");
        sort(table, column, now === "none" ? head.classList.contains("number") : now === "ascending");
      });
    });
  }
  // A protocol's heading stands over rows of its own that the filter shows.
  const head = () => {
    for (const table of tables) {
      for (const body of table.tBodies) {
        const heading = body.querySelector("tr.protocol");
        if (heading) heading.hidden = mixed.checked || !rowsOf(body).some((row) => !row.hidden);
      }
    }
  };
  const mix = () => {
    document.getElementById("mixing").hidden = !mixed.checked;
    for (const table of tables) {
      const heads = [...table.tHead.rows[0].cells];
      const column = Math.max(0, heads.findIndex((head) => head.getAttribute("aria-sort") !== "none"));
      sort(table, column, heads[column].getAttribute("aria-sort") === "descending");
    }
    head();
  };
  if (mixed) mixed.addEventListener("change", mix);
  const input = document.getElementById("filter");
  const filter = () => {
    const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
    const rows = tables.flatMap((table) => [...table.tBodies].flatMap(rowsOf));
    for (const row of rows) row.hidden = !words.every((word) => row.textContent.toLowerCase().includes(word));
    const shown = rows.filter((row) => !row.hidden).length;
    head();
    document.getElementById("shown").textContent = words.length ? `${shown} of ${rows.length} rows` : "";
  };
  if (input) input.addEventListener("input", filter);

  // Charts -----------------------------------------------------------------------------------------------------------
  const tip = (figure, text, x, y) => {
    let box = figure.querySelector(".tip");
    if (text === null) {
      if (box) box.remove();
      return;
    }
    box = box || make(figure, "div", { class: "tip", role: "status" });
    box.textContent = text;
    box.style.left = `${Math.max(4, Math.min(x + 14, figure.clientWidth - box.offsetWidth - 4))}px`;
    box.style.top = `${Math.max(0, y - box.offsetHeight - 10)}px`;
  };
  const place = (figure, event) => {
    const bounds = figure.getBoundingClientRect();
    return [event.clientX - bounds.left, event.clientY - bounds.top];
  };

  const fillOf = (kind) => (kind === "baseline" ? "var(--soft)" : kind === "ours" ? "var(--c0)" : "var(--c3)");
  // Means as points, since the axis need not begin at 0; whole protocols until there are enough, the rest on demand.
  const drawBars = (figure, spec, width, state) => {
    const row = 21, heading = 26, top = 8, right = 58;
    const letters = spec.groups;
    // The table tells what its protocols are.
    const heads = figure.closest("article").querySelectorAll("tr.protocol");
    const words = new Map([...heads].map((head) => [head.dataset.letter, head.textContent.trim()]));
    const named = spec.named;
    let shown = [];
    for (const letter of letters) {
      const members = spec.bars.filter((item) => item.group === letter);
      if (!state.all && shown.length && shown.length + members.length > 24) break;
      shown = shown.concat(members);
    }
    const present = letters.filter((letter) => shown.some((item) => item.group === letter));
    const kinds = [...new Set(shown.map((item) => item.kind))];
    if (kinds.length > 1) {
      const list = make(figure, "div", { class: "key" });
      for (const kind of kinds) {
        const entry = make(list, "span");
        const mark = make(entry, "svg", { viewBox: "0 0 10 10" });
        make(mark, "circle", { cx: 5, cy: 5, r: 4.5, fill: fillOf(kind) });
        entry.append(kind);
      }
    }
    const height = top + row * shown.length + (named ? heading * present.length : 0) + 26;
    const svg = make(figure, "svg", { viewBox: `0 0 ${width} ${height}`, height, role: "img", "aria-label": spec.title });
    const left = Math.min(270, Math.floor(width * 0.42));
    const ends = shown.flatMap((item) => [item.mean + (item.std || 0), item.mean - (item.std || 0), ...item.values]);
    let [low, high] = [Math.min(...ends), Math.max(...ends)];
    const pad = (high - low) * 0.06 || Math.abs(high) * 0.06 || 1;
    [low, high] = [low >= 0 ? Math.max(0, low - pad) : low - pad, high + pad];
    const x = (value) => left + ((value - low) / (high - low)) * (width - left - right);
    for (const value of ticks(low, high, Math.max(3, Math.floor((width - left) / 70)))) {
      make(svg, "line", { class: "grid", x1: x(value), x2: x(value), y1: top, y2: height - 22 });
      make(svg, "text", { x: x(value), y: height - 6, "text-anchor": "middle" }, number(value));
    }
    const cut = (text, room) => (text.length > room ? `${text.slice(0, room - 1)}…` : text);
    let y = top;
    for (const letter of present) {
      if (named) {
        const title = make(svg, "text", { class: "group", x: 1, y: y + 17 }, cut(words.get(letter), Math.floor(width / 7)));
        make(title, "title", {}, words.get(letter));
        y += heading;
      }
      for (const item of shown.filter((one) => one.group === letter)) {
        const middle = y + row / 2;
        const group = make(svg, "g");
        make(group, "rect", { x: 0, y, width, height: row, fill: "transparent" });
        make(group, "text", { class: "name", x: 1, y: middle + 4 }, cut(item.label, Math.floor(left / 7)));
        make(group, "line", { class: "grid", x1: left, x2: width - right, y1: middle, y2: middle });
        let end = x(item.mean) + 5;
        if (item.std !== null) {
          const [a, b] = [x(item.mean - item.std), x(item.mean + item.std)];
          make(group, "path", { class: "whisker", d: `M${a} ${middle}H${b}M${a} ${middle - 4}v8M${b} ${middle - 4}v8` });
          end = Math.max(end, b);
        }
        for (const value of item.values) {
          make(group, "circle", { class: "seed", cx: x(value), cy: middle, r: 2.6 });
          end = Math.max(end, x(value) + 3);
        }
        make(group, "circle", { class: "mean", cx: x(item.mean), cy: middle, r: 5, fill: fillOf(item.kind) });
        make(group, "text", { x: end + 7, y: middle + 4 }, item.mean.toFixed(spec.digits));
        group.addEventListener("pointermove", (event) => tip(figure, `${item.label}\n${item.detail}`, ...place(figure, event)));
        y += row;
      }
    }
    svg.addEventListener("pointerleave", () => tip(figure, null));
    if (shown.length < spec.bars.length) {
      const button = make(figure, "button", { class: "more", type: "button" }, `show all ${spec.bars.length} rows of ${letters.length} protocols`);
      button.addEventListener("click", () => {
        state.all = true;
        draw(figure);
      });
    }
  };

  const drawLines = (figure, spec, width, hidden) => {
    const height = 260, left = 52, right = 10, top = 8, bottom = 38;
    const legend = make(figure, "div", { class: "legend" });
    spec.series.forEach((series, index) => {
      const button = make(legend, "button", { type: "button", "aria-pressed": String(!hidden.has(index)) });
      const mark = make(button, "svg", { viewBox: "0 0 18 8" });
      make(mark, "path", { class: "line", d: "M0 4H18", style: `stroke:${colour(index)}`, "stroke-dasharray": dash(index) });
      button.append(series.name);
      button.addEventListener("click", () => {
        if (!hidden.delete(index)) hidden.add(index);
        draw(figure);
        figure.querySelectorAll(".legend button")[index].focus();
      });
    });
    const svg = make(figure, "svg", { viewBox: `0 0 ${width} ${height}`, height, role: "img", "aria-label": spec.title });
    const shown = spec.series.map((series, index) => ({ ...series, index })).filter(({ index }) => !hidden.has(index));
    const points = shown.flatMap((series) => series.points).filter((point) => point[1] !== null);
    if (!points.length) {
      make(svg, "text", { x: width / 2, y: height / 2, "text-anchor": "middle" }, "nothing to draw");
      return;
    }
    const extent = (values) => values.reduce(([a, b], value) => [Math.min(a, value), Math.max(b, value)], [Infinity, -Infinity]);
    let [x0, x1] = extent(points.map((point) => point[0]));
    let [y0, y1] = extent(points.flatMap((point) => point.slice(1, 4).filter((value) => typeof value === "number")));
    const pad = (y1 - y0) * 0.05 || Math.abs(y1) * 0.05 || 1;
    [y0, y1] = [y0 - pad, y1 + pad];
    if (!spec.lines) [x0, x1] = [x0 - (x1 - x0) * 0.06, x1 + (x1 - x0) * 0.06];
    const x = (value) => left + (x1 === x0 ? 0.5 : (value - x0) / (x1 - x0)) * (width - left - right);
    const y = (value) => top + ((y1 - value) / (y1 - y0)) * (height - top - bottom);
    for (const value of ticks(y0, y1, 5)) {
      make(svg, "line", { class: "grid", x1: left, x2: width - right, y1: y(value), y2: y(value) });
      make(svg, "text", { x: left - 7, y: y(value) + 4, "text-anchor": "end" }, number(value));
    }
    for (const value of ticks(x0, x1, Math.max(2, Math.floor(width / 90)))) {
      make(svg, "text", { x: x(value), y: height - bottom + 17, "text-anchor": "middle" }, number(value));
    }
    make(svg, "line", { class: "axis", x1: left, x2: width - right, y1: height - bottom, y2: height - bottom });
    make(svg, "text", { x: (left + width - right) / 2, y: height - 4, "text-anchor": "middle" }, spec.x);
    make(svg, "text", { x: -(top + height - bottom) / 2, y: 11, transform: "rotate(-90)", "text-anchor": "middle" }, spec.y);
    for (const series of shown) {
      const style = `stroke:${colour(series.index)}`;
      let path = "", joined = false;
      for (const [px, py, low, high] of series.points) {
        if (py === null) {
          joined = false;
          continue;
        }
        path += `${joined ? "L" : "M"}${x(px).toFixed(1)} ${y(py).toFixed(1)}`;
        joined = true;
        if (typeof low === "number" && typeof high === "number") {
          make(svg, "path", { class: "line", style, d: `M${x(px)} ${y(low)}V${y(high)}M${x(px) - 4} ${y(low)}h8M${x(px) - 4} ${y(high)}h8` });
        }
        if (!spec.lines || series.points.length < 25) {
          make(svg, "circle", { cx: x(px), cy: y(py), r: spec.lines ? 2.6 : 4.5, fill: colour(series.index) });
        }
      }
      if (spec.lines) make(svg, "path", { class: "line", style, d: path, "stroke-dasharray": dash(series.index) });
    }
    const rule = make(svg, "line", { class: "axis", y1: top, y2: height - bottom, visibility: "hidden" });
    svg.addEventListener("pointermove", (event) => {
      const bounds = svg.getBoundingClientRect();
      const at = event.clientX - bounds.left;
      const nearest = (series) => series.points.reduce((a, b) => (Math.abs(x(b[0]) - at) < Math.abs(x(a[0]) - at) ? b : a));
      const found = shown.filter((series) => series.points.length).map((series) => [series.name, nearest(series)]);
      const step = found.map(([, point]) => point[0]).reduce((a, b) => (Math.abs(x(b) - at) < Math.abs(x(a) - at) ? b : a));
      const lines = found.filter(([, point]) => point[0] === step)
        .map(([name, point]) => `${name}: ${point[1] === null ? "not finite" : number(point[1])}`);
      rule.setAttribute("x1", x(step));
      rule.setAttribute("x2", x(step));
      rule.setAttribute("visibility", "visible");
      tip(figure, [`${spec.x} ${number(step)}`, ...lines].join("\n"), ...place(figure, event));
    });
    svg.addEventListener("pointerleave", () => {
      tip(figure, null);
      rule.setAttribute("visibility", "hidden");
    });
  };

  const states = new WeakMap();
  function draw(figure) {
    const style = getComputedStyle(figure);
    const width = Math.floor(figure.clientWidth - parseFloat(style.paddingLeft) - parseFloat(style.paddingRight));
    if (width <= 0) return;
    if (!states.has(figure)) states.set(figure, { spec: JSON.parse(figure.dataset.chart), hidden: new Set(), all: false });
    const state = states.get(figure);
    const { spec, hidden } = state;
    figure.querySelectorAll("svg, .legend, .key, .more, .tip").forEach((element) => element.remove());
    if (spec.bars) drawBars(figure, spec, width, state);
    else drawLines(figure, spec, width, hidden);
  }
  const charts = [...document.querySelectorAll(".chart")];
  charts.forEach(draw);
  // Charts in closed sections have no width until they are opened.
  const widths = new WeakMap(charts.map((figure) => [figure, figure.clientWidth]));
  const observer = new ResizeObserver((entries) => {
    for (const { target } of entries) {
      if (widths.get(target) !== target.clientWidth) {
        widths.set(target, target.clientWidth);
        draw(target);
      }
    }
  });
  charts.forEach((figure) => observer.observe(figure));

  // Pictures ---------------------------------------------------------------------------------------------------------
  const dialog = document.getElementById("enlarged");
  dialog.addEventListener("click", () => dialog.close());
  for (const image of document.querySelectorAll(".picture img")) {
    const open = () => {
      dialog.firstElementChild.src = image.src;
      dialog.firstElementChild.alt = image.alt;
      dialog.showModal();
    };
    image.addEventListener("click", open);
    image.addEventListener("keydown", (event) => event.key === "Enter" && open());
  }

  // Texts that are cut to two lines are whole under the pointer; written into the page, they would be there twice.
  for (const element of document.querySelectorAll(".long")) element.title = element.textContent;

  // A link can hold a view: #sort=2 (second column), #sort=-2 (descending), #filter=words, #mixed=1, or the anchor of a run.
  const view = () => {
    const hash = new URLSearchParams(location.hash.slice(1));
    if (hash.has("mixed") && mixed) {
      mixed.checked = hash.get("mixed") !== "0";
      mix();
    }
    if (hash.has("sort")) {
      const column = Number(hash.get("sort"));
      for (const table of tables) sort(table, Math.abs(column) - 1, column < 0);
    }
    if (hash.has("filter") && input) {
      input.value = hash.get("filter");
      filter();
    }
    const target = location.hash && document.getElementById(location.hash.slice(1));
    const section = target && target.closest("details");
    if (section) {
      section.open = true;
      target.scrollIntoView();
    }
  };
  window.addEventListener("hashchange", view);
  view();
  root.dataset.ready = "true";
})();
