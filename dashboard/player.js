// Pictures in step: every panel is a sprite sheet (one frame beside the other). Scrubbing and playing happen
// here, without a round trip to the server.

const PLAY = "M3 1.5v13l11-6.5z";
const STEPS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
const PAUSE = "M3 2h4v12H3zM9 2h4v12H9z";

function loadImage(url) {
  return new Promise((resolve, reject) => {
    const image = new Image();
    image.onload = () => resolve(image);
    image.onerror = () => reject(new Error("a picture did not decode"));
    image.src = url;
  });
}
function isDark(element) {
  const match = getComputedStyle(element).backgroundColor.match(/\d+(\.\d+)?/g);
  return match && match.slice(0, 3).reduce((sum, x) => sum + Number(x), 0) < 384;
}

class Player {
  constructor(host) {
    this.root = host.querySelector(".player");
    this.frame = 0;
    this.speed = 1;
    this.playing = false;
    this.token = 0;
    this.panels = [];
    this.onKey = (event) => this.key(event);
    this.one(".play").onclick = () => this.play(!this.playing);
    this.one(".scrub").oninput = (e) => { this.play(false); this.show(Number(e.target.value)); };
    this.one(".number").onchange = (e) => { this.play(false); this.show(Number(e.target.value) - 1); };
    this.one(".speed").onchange = (e) => { this.speed = Number(e.target.value); };
    this.resize = new ResizeObserver(() => { if (this.data) this.place(); });
    this.icon();
  }
  one(selector) { return this.root.querySelector(selector); }
  all(selector) { return this.root.querySelectorAll(selector); }

  attach() { document.addEventListener("keydown", this.onKey); this.resize.observe(this.root); }
  detach() { document.removeEventListener("keydown", this.onKey); this.resize.disconnect(); this.play(false); }

  // Sprite sheets that `data` needs, and where they go once they are decoded.
  urls(data) { return data.panels.map((p) => p.sheet); }
  take(images) { this.sheets = images; }

  async update(data, send) {
    this.send = send;
    if (this.data && this.data.version === data.version) return this.unchanged();
    const token = ++this.token;
    // Old pictures stay until the new ones are decoded: no flicker.
    const images = await Promise.all(this.urls(data).map(loadImage));
    if (token !== this.token) return;
    this.take(images, data);
    if (!this.data) this.frame = data.start || 0;
    this.data = data;
    this.root.classList.remove("busy");
    this.one(".scrub").max = data.frames - 1;
    this.one(".number").max = data.frames;
    this.one(".of").textContent = ` / ${data.frames}`;
    this.build();
    this.place();
    this.show(Math.min(this.frame, data.frames - 1));
    this.root.dataset.version = data.version;
    this.root.dataset.ready = "true";
  }

  unchanged() {
    this.root.classList.remove("busy");
    this.root.dataset.ready = "true";
  }

  build() {
    const shape = JSON.stringify(this.data.panels.map((p) => [p.title, p.note, p.clickable]));
    if (shape !== this.shape) {
      this.shape = shape;
      const focused = this.panels.findIndex((p) => p.canvas === this.root.getRootNode().activeElement);
      const cell = this.cell;
      this.panels = [];
      this.one(".panels").style.setProperty("--columns", this.data.perRow);
      this.one(".panels").replaceChildren(...this.data.panels.map((p, i) => {
        const { figure, canvas } = this.figure(p.title, p.note, "", "");
        if (p.clickable) {
          canvas.classList.add("edit");
          canvas.onclick = (e) => {
            const box = canvas.getBoundingClientRect();
            this.pick(i, (e.clientX - box.left) / box.width, (e.clientY - box.top) / box.height);
          };
          // From the keyboard: Enter picks the framed cell, Shift and arrows move the frame.
          canvas.tabIndex = 0;
          canvas.setAttribute("role", "button");
          canvas.onkeydown = (e) => this.cellKey(e, i);
          canvas.onblur = () => { this.cell = null; this.draw(); };
        }
        this.panels.push({ canvas, context: canvas.getContext("2d") });
        return figure;
      }));
      if (focused >= 0 && this.panels[focused]) this.panels[focused].canvas.focus({ preventScroll: true });
      this.cell = focused >= 0 ? cell : null;
    }
    for (const p of this.panels) this.size(p);
  }
  pick(panel, x, y) {
    const inside = (v) => Math.min(0.9999, Math.max(0, v));
    this.root.classList.add("busy");
    this.root.dataset.ready = "false";
    this.send("pick", { panel, x: inside(x), y: inside(y), frame: this.frame, count: (this.count = (this.count || 0) + 1) });
  }
  cellKey(event, panel) {
    const [columns, rows] = this.data.cells;
    const at = this.cell || { panel, x: columns >> 1, y: rows >> 1 };
    const [dx, dy] = (event.shiftKey && STEPS[event.key]) || [0, 0];
    if (event.key === "Enter") this.pick(panel, (at.x + 0.5) / columns, (at.y + 0.5) / rows);
    else if (!dx && !dy) return;
    const clip = (v, most) => Math.max(0, Math.min(most, v));
    const step = this.cell ? 1 : 0; // the first press shows where the frame is
    this.cell = { panel, x: clip(at.x + dx * step, columns - 1), y: clip(at.y + dy * step, rows - 1) };
    event.preventDefault();
    event.stopPropagation();
    this.draw();
  }
  // The frame around one cell of a grid, seen on any picture.
  outline(c, scale, x, y, width, height) {
    c.strokeStyle = "#fff";
    c.lineWidth = 2 * Math.max(1, scale / 2);
    c.strokeRect(x, y, width, height);
    c.strokeStyle = "#000";
    c.lineWidth = Math.max(1, scale / 3);
    c.strokeRect(x, y, width, height);
  }
  size(panel) {
    const { width, height } = this.data;
    panel.scale = Math.max(1, Math.round(480 / Math.max(width, height)));
    panel.canvas.width = width * panel.scale;
    panel.canvas.height = height * panel.scale;
  }
  figure(title, note, noteClass, tag) {
    const figure = document.createElement("figure");
    figure.className = "panel";
    const canvas = document.createElement("canvas");
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", `${tag} ${title}: ${note}`);
    const caption = document.createElement("figcaption");
    const head = document.createElement("b");
    if (tag) {
      const mark = document.createElement("span");
      mark.className = `tag ${tag.toLowerCase()}`;
      mark.textContent = tag;
      head.append(mark);
    }
    head.append(title);
    const small = document.createElement("small");
    small.textContent = note;
    small.className = noteClass;
    caption.append(head, small);
    figure.append(canvas, caption);
    return { figure, canvas };
  }
  place() {
    this.root.classList.toggle("dark", isDark(document.querySelector(".stApp") || document.body));
  }

  icon() {
    this.one(".play path").setAttribute("d", this.playing ? PAUSE : PLAY);
    this.one(".play span").textContent = this.playing ? "Pause" : "Play";
    this.one(".play").setAttribute("aria-label", this.playing ? "Pause" : "Play");
  }
  say(text) { this.one(".status").textContent = text; }

  play(on) {
    if (on === this.playing) return;
    this.playing = on;
    this.icon();
    cancelAnimationFrame(this.timer);
    if (!on) return;
    let due = performance.now();
    const tick = (now) => {
      if (!this.playing) return;
      const period = 1000 / (this.data.fps * this.speed);
      if (now - due >= period) {
        const steps = Math.floor((now - due) / period);
        due += steps * period;
        this.show((this.frame + steps) % this.data.frames);
      }
      this.timer = requestAnimationFrame(tick);
    };
    this.timer = requestAnimationFrame(tick);
  }

  show(frame) {
    if (!this.data || !Number.isFinite(frame)) return;
    this.frame = Math.max(0, Math.min(this.data.frames - 1, Math.round(frame)));
    this.one(".scrub").value = this.frame;
    this.one(".number").value = this.frame + 1;
    this.one(".source").textContent = this.data.indices ? `of the file: ${this.data.indices[this.frame]}` : "";
    this.root.dataset.frame = this.frame;
    this.draw();
  }
  // One frame of a sheet onto a panel's canvas.
  paste(image, { canvas, context: c }) {
    const { width, height, columns } = this.data;
    const sx = (this.frame % columns) * width;
    const sy = Math.floor(this.frame / columns) * height;
    c.imageSmoothingEnabled = false;
    c.drawImage(image, sx, sy, width, height, 0, 0, canvas.width, canvas.height);
  }
  draw() {
    this.panels.forEach((panel, i) => {
      this.paste(this.sheets[i], panel);
      const { canvas, context, scale } = panel;
      const [columns, rows] = this.data.cells;
      if (this.cell && this.cell.panel === i && columns * rows > 1) {
        const [width, height] = [canvas.width / columns, canvas.height / rows];
        this.outline(context, scale, this.cell.x * width, this.cell.y * height, width, height);
      }
    });
  }

  // Whether a key belongs to a field or button that has the focus.
  taken(event) {
    const at = event.composedPath()[0];
    if (!(at instanceof Element)) return false;
    const fields = "input,textarea,select,[role=slider],[role=combobox],[role=option],[role=grid],[contenteditable=true],canvas[data-testid]";
    if (at.closest(fields) !== null) return true;
    const buttons = "button,a,summary,[role=button],[role=tab],[role=radio]";
    return at.closest(buttons) !== null && (event.key === " " || event.key === "Enter");
  }
  step(by) { this.play(false); this.show((this.frame + by + this.data.frames) % this.data.frames); }
  key(event) {
    if (!this.data || event.ctrlKey || event.metaKey || event.altKey || this.taken(event)) return;
    if (!this.press(event)) return;
    event.preventDefault();
  }
  // Returns whether the key meant something.
  press(event) {
    const inside = this.root.contains(event.composedPath()[0]);
    if (event.key === " ") this.play(!this.playing);
    else if (event.key === "ArrowLeft") this.step(-1);
    else if (event.key === "ArrowRight") this.step(1);
    else if (event.key === "Home" && inside) this.step(-this.frame);
    else if (event.key === "End" && inside) this.step(this.data.frames - 1 - this.frame);
    else return false;
    return true;
  }
}

function mount(Kind, component) {
  const host = component.parentElement;
  const view = host.vmaeView || (host.vmaeView = new Kind(host));
  view.attach();
  view.update(component.data, component.setTriggerValue)
    .catch((e) => view.say(`These pictures could not be shown: ${e.message}.`));
  return () => view.detach();
}
