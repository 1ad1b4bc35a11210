// The reconstruction viewer: the player's pictures with the patch grid, the brush and the chart. A finished
// stroke of the brush is sent as one mask.

const GREY = "#808080";
const KINDS = ["original", "masked", "predicted", "pasted", "error"];
const SVG = "http://www.w3.org/2000/svg";

// "N.base64url" <-> array of 0/1; the inverse of pack_mask in state.py.
function unpackMask(text) {
  const [count, bits] = text.split(".");
  const raw = atob(bits.replace(/-/g, "+").replace(/_/g, "/"));
  return Array.from({ length: Number(count) }, (_, i) => (raw.charCodeAt(i >> 3) >> (7 - (i & 7))) & 1);
}
function packMask(mask) {
  const bytes = new Uint8Array(Math.ceil(mask.length / 8));
  mask.forEach((bit, i) => { if (bit) bytes[i >> 3] |= 128 >> (i & 7); });
  const text = btoa(String.fromCharCode(...bytes));
  return `${mask.length}.${text.replace(/\+/g, "-").replace(/\//g, "_").replace(/=+$/, "")}`;
}
class Viewer extends Player {
  constructor(host) {
    super(host);
    this.scope = "tube";
    this.metric = "psnr";
    this.lines = false;
    this.cursor = null;
    this.one(".lines").onchange = (e) => { this.lines = e.target.checked; this.draw(); };
    for (const b of this.all(".scope")) b.onclick = () => { this.scope = b.dataset.scope; this.radios(); };
    for (const b of this.all(".metric")) b.onclick = () => { this.metric = b.dataset.metric; this.radios(); this.chart(); };
    const plot = this.one(".plot");
    plot.onpointerdown = (e) => {
      const box = plot.getBoundingClientRect();
      this.play(false);
      this.show(Math.round(((e.clientX - box.left - 34) / (box.width - 42)) * (this.data.frames - 1)));
    };
    this.radios();
  }

  urls(data) { return [data.original, ...data.sides.flatMap((s) => [s.made, s.error])]; }
  take(images, data) {
    this.original = images[0];
    this.sides = data.sides.map((_, i) => ({ made: images[1 + 2 * i], error: images[2 + 2 * i] }));
    this.masks = data.sides.map((s) => unpackMask(s.mask));
    this.root.classList.toggle("two", data.sides.length > 1);
    this.root.dataset.visible = this.masks[0].reduce((sum, bit) => sum + 1 - bit, 0);
    this.one(".legend i").style.background = `linear-gradient(to right, ${data.palette.join(",")})`;
    this.one(".legend .top").textContent = `≥ ${data.errorMax}`;
    this.say("");
  }

  build() {
    const shape = JSON.stringify(this.data.sides.map((s) => [s.tag, s.captions, s.editable]));
    if (shape !== this.shape) {
      this.shape = shape;
      // The chart may stand among the panels: out of the way before they are replaced.
      this.root.insertBefore(this.one(".chart"), this.one(".foot"));
      this.panels = [];
      this.one(".panels").replaceChildren(
        ...this.data.sides.flatMap((side, i) => KINDS.map((kind) => this.panel(kind, side, i))),
      );
    }
    for (const p of this.panels) this.size(p);
  }

  panel(kind, side, index) {
    const [title, note, truth] = side.captions[kind];
    const tag = kind === "original" ? "" : side.tag;
    const { figure, canvas } = this.figure(title, note, truth ? "truth" : "", tag);
    canvas.dataset.kind = kind;
    canvas.dataset.side = index;
    if (kind !== "original" && kind !== "masked") canvas.classList.add("made");
    if (side.editable && kind !== "error") {
      canvas.classList.add("edit");
      canvas.onpointerdown = (e) => this.strokeStart(e, canvas, index);
      canvas.onpointermove = (e) => this.strokeMove(e, canvas);
      canvas.onpointerup = () => this.strokeEnd();
      canvas.onpointercancel = () => this.strokeEnd();
    }
    this.panels.push({ kind, side: index, canvas, context: canvas.getContext("2d") });
    return figure;
  }

  // In a narrow page with one side the chart is the sixth cell of the grid, else a row of its own.
  place() {
    super.place();
    const chart = this.one(".chart");
    const inside = this.data.sides.length === 1 && this.root.clientWidth < 1180 && this.root.clientWidth > 560;
    chart.classList.toggle("below", !inside);
    if (inside && chart.parentElement !== this.one(".panels")) this.one(".panels").append(chart);
    if (!inside && chart.parentElement !== this.root) this.root.insertBefore(chart, this.one(".foot"));
    this.chart();
  }

  radios() {
    for (const b of this.all(".scope")) b.setAttribute("aria-checked", b.dataset.scope === this.scope);
    for (const b of this.all(".metric")) b.setAttribute("aria-checked", b.dataset.metric === this.metric);
  }

  show(frame) {
    super.show(frame);
    this.chart();
  }

  draw() {
    if (!this.data) return;
    const { grid } = this.data;
    const slot = Math.floor(this.frame / grid.tubelet);
    for (const panel of this.panels) {
      const { kind, side, canvas, context: c, scale } = panel;
      const image = kind === "original" || kind === "masked" ? this.original
        : kind === "error" ? this.sides[side].error : this.sides[side].made;
      const mask = this.masks[side];
      const size = grid.patch * scale;
      this.paste(image, panel);
      for (let y = 0; y < grid.h; y++) {
        for (let x = 0; x < grid.w; x++) {
          const masked = mask[(slot * grid.h + y) * grid.w + x];
          if (kind === "masked" && masked) {
            c.fillStyle = GREY;
            c.fillRect(x * size, y * size, size, size);
          } else if (kind === "predicted" && !masked) {
            this.hatch(c, x * size, y * size, size);
          }
        }
      }
      if (this.lines) this.gridLines(c, canvas, size);
      if (this.cursor && kind !== "error") {
        this.outline(c, scale, this.cursor.x * size, this.cursor.y * size, size, size);
      }
    }
  }
  // Places the model did not predict: a quiet pattern that no prediction looks like.
  hatch(c, x, y, size) {
    c.fillStyle = "#1b1f27";
    c.fillRect(x, y, size, size);
    c.strokeStyle = "#343b48";
    c.lineWidth = Math.max(1, size / 24);
    c.beginPath();
    c.moveTo(x, y + size); c.lineTo(x + size, y);
    c.stroke();
  }
  gridLines(c, canvas, size) {
    c.strokeStyle = "rgba(255,255,255,0.35)";
    c.lineWidth = 1;
    c.beginPath();
    for (let x = size; x < canvas.width; x += size) { c.moveTo(x, 0); c.lineTo(x, canvas.height); }
    for (let y = size; y < canvas.height; y += size) { c.moveTo(0, y); c.lineTo(canvas.width, y); }
    c.stroke();
  }

  // -- the brush --------------------------------------------------------------------------------------

  patchAt(event, canvas) {
    const box = canvas.getBoundingClientRect();
    const { grid } = this.data;
    const x = Math.floor(((event.clientX - box.left) / box.width) * grid.w);
    const y = Math.floor(((event.clientY - box.top) / box.height) * grid.h);
    return x >= 0 && y >= 0 && x < grid.w && y < grid.h ? { x, y } : null;
  }
  tokens(x, y) {
    const { grid } = this.data;
    const slot = Math.floor(this.frame / grid.tubelet);
    const slots = this.scope === "slot" ? [slot] : Array.from({ length: grid.t }, (_, i) => i);
    return slots.map((s) => (s * grid.h + y) * grid.w + x);
  }
  paint(x, y) {
    const mask = this.masks[this.stroke.side];
    for (const n of this.tokens(x, y)) {
      if (mask[n] === this.stroke.value) continue;
      const left = mask.reduce((sum, bit) => sum + (bit !== this.stroke.value), 0);
      if (left <= 1) {
        this.say(this.stroke.value ? "At least one patch must stay visible." : "At least one patch must stay masked.");
        return;
      }
      mask[n] = this.stroke.value;
      this.stroke.changed = true;
    }
    this.draw();
  }
  begin(x, y, side) {
    const mask = this.masks[side];
    const { grid } = this.data;
    const here = mask[(Math.floor(this.frame / grid.tubelet) * grid.h + y) * grid.w + x];
    this.say("");
    this.stroke = { side, value: here ? 0 : 1, changed: false };
    this.paint(x, y);
  }
  strokeStart(event, canvas, side) {
    if (event.button) return;
    const at = this.patchAt(event, canvas);
    if (!at) return;
    event.preventDefault();
    this.root.focus({ preventScroll: true });
    this.cursor = null;
    this.play(false);
    try { canvas.setPointerCapture(event.pointerId); } catch { /* a pointer that is already gone */ }
    this.begin(at.x, at.y, side);
  }
  strokeMove(event, canvas) {
    if (!this.stroke) return;
    const at = this.patchAt(event, canvas);
    if (at) this.paint(at.x, at.y);
  }
  strokeEnd() {
    const stroke = this.stroke;
    this.stroke = null;
    if (!stroke || !stroke.changed) return;
    this.root.classList.add("busy");
    this.root.dataset.ready = "false";
    this.say("reconstructing…");
    this.send("mask", { side: stroke.side, mask: packMask(this.masks[stroke.side]), stroke: (this.strokes = (this.strokes || 0) + 1) });
  }

  press(event) {
    if (event.shiftKey && STEPS[event.key]) {
      const { grid } = this.data;
      const old = this.cursor || { x: grid.w >> 1, y: grid.h >> 1 };
      const [dx, dy] = this.cursor ? STEPS[event.key] : [0, 0];
      this.cursor = {
        x: Math.max(0, Math.min(grid.w - 1, old.x + dx)),
        y: Math.max(0, Math.min(grid.h - 1, old.y + dy)),
      };
    } else if (event.key === "Enter" && this.cursor && this.data.sides[0].editable) {
      this.begin(this.cursor.x, this.cursor.y, 0);
      this.strokeEnd();
    } else if (event.key === "Escape" && this.cursor) {
      this.cursor = null;
    } else return super.press(event);
    this.draw();
    return true;
  }

  // -- the chart --------------------------------------------------------------------------------------

  chart() {
    if (!this.data) return;
    const plot = this.one(".plot");
    const width = plot.clientWidth || 300;
    const height = plot.clientHeight || 120;
    const { frames, sides } = this.data;
    const series = sides.map((s) => s.metrics[this.metric]);
    const known = series.flat().filter((v) => v !== null);
    plot.replaceChildren();
    plot.setAttribute("viewBox", `0 0 ${width} ${height}`);
    const digits = this.metric === "psnr" ? 1 : this.metric === "ssim" ? 3 : 4;
    const unit = this.metric === "psnr" ? " dB" : "";
    const text = (v) => (v === null || v === undefined ? "–" : v.toFixed(digits) + unit);
    const numbers = this.one(".numbers");
    numbers.replaceChildren(...sides.map((side, i) => {
      const item = document.createElement("span");
      const tag = document.createElement("span");
      tag.className = `tag ${side.tag.toLowerCase() || "a"}`;
      tag.textContent = sides.length > 1 ? `${side.tag} ` : "";
      const bold = document.createElement("b");
      bold.textContent = text(side.overall[this.metric]);
      item.append(tag, bold, ` clip · ${text(series[i][this.frame])} this frame`);
      return item;
    }));
    if (!known.length) return;
    let low = Math.min(...known);
    let high = Math.max(...known);
    const pad = Math.max((high - low) * 0.12, this.metric === "psnr" ? 0.5 : this.metric === "ssim" ? 0.01 : 1e-4);
    low = this.metric === "psnr" ? low - pad : Math.max(0, low - pad);
    high += pad;
    const x = (k) => 34 + (k / Math.max(1, frames - 1)) * (width - 42);
    const y = (v) => height - 14 - ((v - low) / (high - low)) * (height - 22);
    const add = (name, attributes, content) => {
      const e = document.createElementNS(SVG, name);
      for (const [k, v] of Object.entries(attributes)) e.setAttribute(k, v);
      if (content !== undefined) e.textContent = content;
      plot.append(e);
      return e;
    };
    for (const v of [low + pad, (low + high) / 2, high - pad]) {
      add("line", { x1: 34, x2: width - 8, y1: y(v), y2: y(v), stroke: "var(--line)" });
      add("text", { x: 30, y: y(v) + 4, "text-anchor": "end" }, v.toFixed(Math.min(digits, 3)));
    }
    add("text", { x: 34, y: height - 1 }, "1");
    add("text", { x: width - 8, y: height - 1, "text-anchor": "end" }, String(frames));
    add("line", { x1: x(this.frame), x2: x(this.frame), y1: 4, y2: height - 14, stroke: "var(--st-primary-color)", "stroke-width": 1.5 });
    series.forEach((values, i) => {
      const colour = i ? "var(--side-b)" : "var(--side-a)";
      const points = values.map((v, k) => (v === null ? null : `${x(k)},${y(v)}`)).filter(Boolean);
      add("polyline", { points: points.join(" "), fill: "none", stroke: colour, "stroke-width": 2, "stroke-linejoin": "round" });
      const here = values[this.frame];
      if (here !== null && here !== undefined) add("circle", { cx: x(this.frame), cy: y(here), r: 4, fill: colour });
    });
  }
}

export default function (component) { return mount(Viewer, component); }
