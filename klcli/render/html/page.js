// The text of a report: it unpacks the tokens, draws those near the screen and answers mouse and
// keyboard. Text only ever becomes text nodes. docs/html.md says what a reader can do.
"use strict";

const BLOCK = 200;          // tokens that are drawn together, up to the end of a line
const LONGEST_BLOCK = 600;
const NEAR = "1200px 0px";  // how far from the screen blocks are drawn
const PRINTED = 6000;       // tokens of a text that are printed
const STEPS = 6;            // colours of a scale to each side

const byId = (id) => document.getElementById(id);

function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

// ---- reading what tokens.py packed -------------------------------------------------------------

const ARRAYS = { u1: Uint8Array, u2: Uint16Array, u4: Uint32Array, i4: Int32Array, f4: Float32Array };

function bytesOf(base64) {
  if (Uint8Array.fromBase64) return Uint8Array.fromBase64(base64);
  const letters = atob(base64);
  const bytes = new Uint8Array(letters.length);
  for (let place = 0; place < letters.length; place++) bytes[place] = letters.charCodeAt(place);
  return bytes;
}

async function unpack(base64) {
  const bytes = bytesOf(base64);
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  const content = await new Response(stream).arrayBuffer();
  const start = 4 + new DataView(content).getUint32(0, true);
  const data = JSON.parse(new TextDecoder().decode(content.slice(4, start)));
  for (const [name, place] of Object.entries(data.columns)) {
    data[name] = new ARRAYS[place.type](content, start + place.start, place.count);
  }
  data.sides = data.paired ? ["reference", "candidate"] : ["model"];
  return data;
}

// ---- numbers -----------------------------------------------------------------------------------

function digits(x, count = 3) {
  if (Number.isNaN(x)) return "–";
  if (!Number.isFinite(x)) return x > 0 ? "∞" : "−∞";
  if (x === 0) return "0";
  const size = Math.abs(x);
  const shown = size < 1e-4 || size >= 1e6
    ? x.toExponential(count - 1)
    : x.toFixed(Math.max(0, count - 1 - Math.floor(Math.log10(size))));
  return shown.replace("-", "−");
}

const percent = (x) => (Number.isNaN(x) ? "–" : `${digits(100 * x)} %`);
const signed = (x, write) => (x > 0 ? `+${write(x)}` : write(x));
const rank = (x) => (x < 0 ? "–" : String(x));

// ---- measures: what a token can be coloured by -------------------------------------------------

const NLL_EDGES = [0.5, 1, 2, 4, 6, 8];
const RANK_EDGES = [1, 2, 5, 10, 100, 1000];

function measuresOf(data, labels) {
  const known = (x) => (x < 0 ? NaN : x);
  if (!data.paired) {
    return {
      nll: { label: "NLL (nats)", of: (row) => data.nll[row], edges: NLL_EDGES },
      entropy: { label: "entropy (nats)", of: (row) => data.entropy[row], edges: [0.5, 1, 2, 3, 4, 6] },
      rank: { label: "rank", of: (row) => known(data.rank[row]), edges: RANK_EDGES },
      confidence: {
        label: "confidence", of: (row) => probability(data, "model", row, 0), write: percent,
        edges: [0.1, 0.25, 0.5, 0.75, 0.9, 0.99],
      },
    };
  }
  return {
    kl: { label: "KL (nats)", of: (row) => data.kl[row] },
    nll_difference: {
      label: "ΔNLL (nats)", of: (row) => data.nll_candidate[row] - data.nll_reference[row], worse: 1,
    },
    delta_p: { label: "Δp of the token", of: (row) => data.delta_p[row], worse: -1, write: percent },
    rank_change: {
      label: "rank change",
      of: (row) => known(data.rank_candidate[row]) - known(data.rank_reference[row]),
      worse: 1, edges: RANK_EDGES, write: String,
    },
    nll_reference: {
      label: `NLL of ${labels.reference}`, of: (row) => data.nll_reference[row], edges: NLL_EDGES,
    },
    nll_candidate: {
      label: `NLL of ${labels.candidate}`, of: (row) => data.nll_candidate[row], edges: NLL_EDGES,
    },
  };
}

// 1, 2 and 5 of each decade, up to where the largest values are.
function edgesOf(measure, count) {
  const sizes = new Float32Array(count);
  for (let row = 0; row < count; row++) {
    const size = Math.abs(measure.of(row));
    sizes[row] = Number.isFinite(size) ? size : 0;
  }
  sizes.sort();
  const large = sizes[Math.floor(0.995 * (count - 1))] || sizes[count - 1] || 1;
  const decade = Math.floor(Math.log10(large));
  const all = [];
  for (let power = decade - 2; power <= decade; power++) {
    for (const digit of [1, 2, 5]) all.push(digit * 10 ** power);
  }
  return all.filter((edge) => edge <= large * 1.001).slice(-STEPS);
}

// How deep the colour of a value is: 1 to 6, below 0 for what is better; 0 for none, NaN unknown.
function levelOf(measure, value) {
  if (Number.isNaN(value)) return NaN;
  const size = Math.abs(value);
  let level = 0;
  while (level < STEPS && size >= measure.edges[level]) level++;
  return measure.worse && value * measure.worse < 0 ? -level : level;
}

function colourOf(level) {
  if (Number.isNaN(level)) return "x";
  return level > 0 ? `w${level}` : level < 0 ? `b${-level}` : "";
}

// ---- what the models expected ------------------------------------------------------------------

function probability(data, side, row, place) {
  const code = data[`p_${side}`][row * data.columns[`p_${side}`].width + place];
  return code ? Math.exp((1 - code) / data.steps) : 0;
}

function expected(data, side, row) {
  const ids = data[`ids_${side}`];
  const width = data.columns[`ids_${side}`].width;
  const found = [];
  for (let place = 0; place < width; place++) {
    const text = data.texts[ids[row * width + place]];
    if (text !== undefined) {
      found.push({ id: ids[row * width + place], text, p: probability(data, side, row, place) });
    }
  }
  return found;
}

// A text in a list, where blanks are to be seen.
const spelled = (text) => text.replaceAll("·", "\\xb7").replaceAll(" ", "·").replaceAll("\n", "");

// ---- the text ----------------------------------------------------------------------------------

class Reader {
  constructor(data, labels) {
    this.data = data;
    this.labels = labels;
    this.measures = measuresOf(data, labels);
    this.entryOf = new Uint32Array(data.rows);
    this.rowOf = new Int32Array(data.token.length).fill(-1);
    let row = 0;
    data.scored.forEach((isScored, entry) => {
      if (!isScored) return;
      this.entryOf[row] = entry;
      this.rowOf[entry] = row++;
    });
    this.current = 0;
    this.pinned = null;
    this.isHit = new Uint8Array(data.token.length);
    this.levels = new Float32Array(data.rows);
    this.blocks = [];
    this.observer = new IntersectionObserver((seen) => seen.forEach((one) => this.onSeen(one)), {
      rootMargin: NEAR,
    });
  }

  text(entry) {
    return this.data.texts[this.data.token[entry]] ?? "□";
  }

  layOut(place) {
    place.replaceChildren();
    this.data.documents.forEach((document_, number) => {
      const next = this.data.documents[number + 1];
      const stop = next ? next.first : this.data.token.length;
      const heading = make("h3", { id: `document-${number}` }, make("bdi", {}, document_.name));
      const body = make("div");
      body.setAttribute("role", "listbox");
      body.setAttribute("aria-labelledby", heading.id);
      body.setAttribute("aria-orientation", "horizontal");
      this.cut(document_.first, stop).forEach((block) => body.append(block.element));
      place.append(heading, body);
    });
    this.width = place.clientWidth || 700;
    for (const block of this.blocks) {
      block.element.style.minHeight = `${this.guess(block)}px`;
      this.observer.observe(block.element);
    }
  }

  // Blocks of a document: they end with a line where there is one.
  cut(first, stop) {
    const own = [];
    let start = first;
    for (let entry = first; entry < stop; entry++) {
      const length = entry + 1 - start;
      const ends = length >= BLOCK && this.text(entry).endsWith("\n");
      if (ends || length >= LONGEST_BLOCK || entry === stop - 1) {
        const element = make("div", { className: "block" });
        element.setAttribute("role", "presentation");
        const block = { element, start, stop: entry + 1, isDrawn: false };
        element.block = block;
        own.push(block);
        start = entry + 1;
      }
    }
    this.blocks.push(...own);
    return own;
  }

  // About how high a block will be, until it is drawn.
  guess(block) {
    let letters = 0, lines = 1;
    for (let entry = block.start; entry < block.stop; entry++) {
      const text = this.text(entry);
      letters += text.length;
      if (text.endsWith("\n")) lines++;
    }
    return Math.ceil((letters * 8) / this.width + lines / 2) * 30;
  }

  onSeen(one) {
    const block = one.target.block;
    if (one.isIntersecting) this.draw(block);
    else if (block.isDrawn && !block.element.contains(document.activeElement)) this.clear(block);
  }

  draw(block) {
    if (block.isDrawn) return;
    const tokens = [];
    for (let entry = block.start; entry < block.stop; entry++) tokens.push(this.token(entry));
    block.element.replaceChildren(...tokens);
    block.element.style.minHeight = "";
    block.isDrawn = true;
  }

  clear(block) {
    block.element.style.minHeight = `${block.element.offsetHeight}px`;
    block.element.replaceChildren();
    block.isDrawn = false;
  }

  token(entry) {
    const row = this.rowOf[entry];
    const element = make("span", {}, this.text(entry));
    element.entry = entry;
    element.row = row;
    if (row >= 0) {
      element.setAttribute("role", "option");
      element.setAttribute("aria-selected", String(row === this.pinned));
      element.tabIndex = row === this.current ? 0 : -1;
    }
    this.dress(element);
    return element;
  }

  dress(element) {
    const row = element.row;
    const hit = this.isHit[element.entry] ? " hit" : "";
    if (row < 0) {
      element.className = `u${hit}`;
      return;
    }
    const flagged = this.data.flagged[row] ? " f" : "";
    const pinned = row === this.pinned ? " pinned" : "";
    element.className = `t ${colourOf(this.levels[row])}${flagged}${hit}${pinned}`;
  }

  dressAll() {
    for (const block of this.blocks) {
      if (block.isDrawn) for (const element of block.element.children) this.dress(element);
    }
  }

  blockOf(entry) {
    let low = 0, high = this.blocks.length - 1;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.blocks[middle].stop > entry) high = middle;
      else low = middle + 1;
    }
    return low;
  }

  // The element of a token; its block and those beside it are drawn, so that it stays in place.
  elementAt(entry) {
    const number = this.blockOf(entry);
    for (const near of [number - 1, number, number + 1]) {
      if (this.blocks[near]) this.draw(this.blocks[near]);
    }
    return this.blocks[number].element.children[entry - this.blocks[number].start];
  }

  elementOf(row) {
    return row < 0 || row >= this.entryOf.length ? null : this.elementAt(this.entryOf[row]);
  }

  colourBy(name) {
    const measure = this.measures[name];
    measure.edges ??= edgesOf(measure, this.entryOf.length);
    for (let row = 0; row < this.levels.length; row++) {
      this.levels[row] = levelOf(measure, measure.of(row));
    }
    this.dressAll();
    this.showLegend(measure);
    const marked = this.data.flagged.some((one) => one);
    this.stands = marked
      ? (row) => this.data.flagged[row]
      : (row) => Math.abs(this.levels[row]) === STEPS;
    byId("outlier-kind").textContent = marked ? "outlier" : "token of the deepest colour";
  }

  showLegend(measure) {
    const write = measure.write ?? ((x) => digits(x, 1));
    const swatch = (level) => make("span", {
      className: `swatch ${colourOf(level)}`,
      textContent: level ? `${level < 0 !== (measure.worse < 0) ? "≤ −" : "≥ "}${write(measure.edges[Math.abs(level) - 1])}` : "less",
    });
    const steps = Array.from({ length: STEPS }, (_, step) => step + 1);
    const parts = [make("span", {}, `${measure.label}: `)];
    if (measure.worse) {
      parts.push("better ", ...steps.toReversed().map((step) => swatch(-step)));
    }
    parts.push(swatch(0), ...steps.map(swatch));
    if (measure.worse) parts.push(" worse");
    const excluded = make("span", { className: "swatch x", textContent: "not known" });
    const sample = make("span", { className: "t f", textContent: "stands out" });
    const note = make("span", { className: "u", textContent: "not scored" });
    byId("legend").replaceChildren(...parts, excluded, " ", sample, " ", note);
  }

  // Move to a token: it is scrolled to, focused and shown.
  go(row) {
    const element = this.elementOf(row);
    if (!element) return;
    this.focus(element);
    element.scrollIntoView({ block: "center" });
  }

  // The one token that the Tab key leads to.
  focus(element) {
    const before = document.querySelector('#text .t[tabindex="0"]');
    if (before) before.tabIndex = -1;
    this.current = element.row;
    element.tabIndex = 0;
    if (this.pinned !== null) this.pin(element.row);
    element.focus({ preventScroll: true });
    this.show(element.row);
  }

  pin(row) {
    const before = this.pinned;
    this.pinned = row;
    for (const one of [before, row]) {
      if (one === null) continue;
      const entry = this.entryOf[one];
      const block = this.blocks[this.blockOf(entry)];
      const element = block.isDrawn ? block.element.children[entry - block.start] : null;
      if (!element) continue;
      this.dress(element);
      element.setAttribute("aria-selected", String(one === row));
    }
    if (row !== null) this.show(row);
  }

  next(step, stands) {
    for (let row = this.current + step; row >= 0 && row < this.levels.length; row += step) {
      if (stands(row)) return row;
    }
    return null;
  }

  goToOutlier(step) {
    const row = this.next(step, this.stands);
    if (row !== null) this.go(row);
    else byId("said").textContent = step > 0 ? "no outlier behind this" : "no outlier before this";
  }

  // The token on the next line, or the one before, that stands nearest below or above.
  goByLine(step) {
    const here = this.elementOf(this.current).getBoundingClientRect();
    let nearest = null, distance = Infinity, line = null;
    for (let row = this.current + step; row >= 0 && row < this.levels.length; row += step) {
      const box = this.elementOf(row).getBoundingClientRect();
      if (step * (box.top - here.top) < 4) continue;
      line ??= box.top;
      if (Math.abs(box.top - line) > 4) break;
      if (Math.abs(box.left - here.left) < distance) {
        nearest = row;
        distance = Math.abs(box.left - here.left);
      }
    }
    if (nearest !== null) this.go(nearest);
  }

  // ---- the panel ----

  show(row) {
    this.shown?.classList.remove("shown");
    this.shown = this.elementOf(row);
    this.shown.classList.add("shown");
    this.shownRow = row;
    byId("token").replaceChildren(...this.about(row));
    byId("panel").hidden = false;
  }

  about(row) {
    const { data } = this;
    const entry = this.entryOf[row];
    const title = make("h3", {}, make("code", {}, make("bdi", {}, spelled(this.text(entry)))));
    const tops = make("div", { className: `tops${data.paired ? "" : " single"}` });
    for (const side of data.sides) tops.append(this.listOf(side, row, data.token[entry]));
    const numbers = make("table", {}, make("tbody", {}, ...this.numbersOf(row)));
    const hint = this.pinned === null ? "Click or Enter pins this token." : "Pinned; Escape unpins.";
    return [title, numbers, tops, make("p", { className: "hint" }, hint)];
  }

  numbersOf(row) {
    const { data, labels } = this;
    const line = (head, ...cells) => {
      const heading = make("th", { scope: "row" }, head);
      return make("tr", {}, heading, ...cells.map((cell) => make("td", {}, cell)));
    };
    if (!data.paired) {
      return [
        line("NLL", digits(data.nll[row])),
        line("p of the token", percent(Math.exp(-data.nll[row]))),
        line("entropy", digits(data.entropy[row])),
        line("rank", rank(data.rank[row])),
      ];
    }
    const difference = data.nll_candidate[row] - data.nll_reference[row];
    const one = (text) => {
      const cell = make("td", { colSpan: 2 }, text);
      return cell;
    };
    const wide = (head, text) => make("tr", {}, make("th", { scope: "row" }, head), one(text));
    return [
      wide("KL", `${digits(data.kl[row])} nats`),
      wide("ΔNLL", signed(difference, digits)),
      wide("Δp", signed(data.delta_p[row], percent)),
      make("tr", {}, make("td"), make("th", { scope: "col" }, labels.reference), make("th", { scope: "col" }, labels.candidate)),
      line("NLL", digits(data.nll_reference[row]), digits(data.nll_candidate[row])),
      line("p of the token", percent(Math.exp(-data.nll_reference[row])), percent(Math.exp(-data.nll_candidate[row]))),
      line("rank", rank(data.rank_reference[row]), rank(data.rank_candidate[row])),
    ];
  }

  listOf(side, row, trueId) {
    const items = expected(this.data, side, row).map(({ id, text, p }) => {
      const isTrue = id === trueId;
      const bar = make("span", { className: "bar" });
      bar.style.width = `${100 * p}%`;
      const name = make("code", {}, make("bdi", {}, spelled(text)));
      const item = make("li", { className: isTrue ? "true" : "" }, make("span", {}, isTrue ? "▸ " : "", name), make("span", { className: "p" }, percent(p)), bar);
      if (isTrue) item.append(make("span", { className: "unseen" }, "the token of the text"));
      return item;
    });
    const heading = make("h4", {}, make("bdi", {}, this.labels[side]));
    if (!items.length) return make("div", {}, heading, make("p", {}, "not kept"));
    return make("div", {}, heading, make("ol", {}, ...items));
  }

  hide() {
    this.shown?.classList.remove("shown");
    byId("panel").hidden = true;
  }
}

// ---- search ------------------------------------------------------------------------------------

class Search {
  constructor(reader) {
    this.reader = reader;
    this.matches = [];
    this.at = -1;
  }

  // The whole text in small letters, and where each token begins in it.
  read() {
    if (this.starts) return;
    const count = this.reader.data.token.length;
    const small = this.reader.data.texts.map((text) => text.replace("↵\n", "\n").toLowerCase());
    const parts = [];
    this.starts = new Uint32Array(count + 1);
    for (let entry = 0; entry < count; entry++) {
      const text = small[this.reader.data.token[entry]] ?? "□";
      parts.push(text);
      this.starts[entry + 1] = this.starts[entry] + text.length;
    }
    this.whole = parts.join("");
  }

  entryAt(place) {
    let low = 0, high = this.starts.length - 2;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.starts[middle + 1] > place) high = middle;
      else low = middle + 1;
    }
    return low;
  }

  find(wanted) {
    this.read();
    const { isHit } = this.reader;
    isHit.fill(0);
    this.matches = [];
    this.at = -1;
    const small = wanted.toLowerCase();
    for (let place = small ? this.whole.indexOf(small) : -1; place >= 0; place = this.whole.indexOf(small, place + small.length)) {
      const first = this.entryAt(place), last = this.entryAt(place + small.length - 1);
      isHit.fill(1, first, last + 1);
      this.matches.push(first);
    }
    this.reader.dressAll();
    this.say(small);
    if (this.matches.length) this.step(1);
  }

  step(by) {
    const { length } = this.matches;
    if (!length) return;
    this.at = (this.at + by + length) % length;
    const entry = this.matches[this.at];
    const element = this.reader.elementAt(entry);
    element.scrollIntoView({ block: "center" });
    if (element.row >= 0) this.reader.show(element.row);
    this.say(true);
  }

  say(isAsked) {
    const { length } = this.matches;
    byId("matches").textContent = !isAsked ? "" : length ? `${this.at + 1} of ${length}` : "not found";
  }
}

// ---- what the reader does ----------------------------------------------------------------------

function listenToMouse(reader) {
  const text = byId("text");
  const tokenOf = (event) => (event.target.row >= 0 ? event.target : null);
  text.addEventListener("pointerover", (event) => {
    const token = tokenOf(event);
    if (token && reader.pinned === null && event.pointerType !== "touch") reader.show(token.row);
  });
  text.addEventListener("focusin", (event) => {
    const token = tokenOf(event);
    if (token && token.row !== reader.shownRow) reader.show(token.row);
  });
  text.addEventListener("click", (event) => {
    const token = tokenOf(event);
    if (!token) return;
    const isSame = reader.pinned === token.row;
    reader.pinned = null;
    reader.focus(token);
    for (const one of document.querySelectorAll("#text .pinned")) reader.dress(one);
    reader.pin(isSame ? null : token.row);
    reader.show(token.row);
  });
  byId("unpin").addEventListener("click", () => {
    reader.pin(null);
    reader.hide();
  });
  document.addEventListener("click", (event) => {
    const link = event.target.closest?.("[data-row]");
    if (!link) return;
    event.preventDefault();
    reader.go(Number(link.dataset.row));
  });
}

function listenToKeys(reader) {
  const inText = {
    ArrowRight: () => reader.go(reader.current + 1),
    ArrowLeft: () => reader.go(reader.current - 1),
    ArrowDown: () => reader.goByLine(1),
    ArrowUp: () => reader.goByLine(-1),
    Enter: () => reader.pin(reader.current),
    " ": () => reader.pin(reader.current),
  };
  const letters = {
    n: () => reader.goToOutlier(1),
    p: () => reader.goToOutlier(-1),
    "/": () => byId("search").focus(),
  };
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "Escape") {
      if (reader.pinned === null) reader.hide();
      else reader.pin(null);
      if (reader.shownRow !== undefined && !byId("panel").hidden) reader.show(reader.shownRow);
      return;
    }
    if (event.target.matches("input, select, textarea")) return;
    const isInText = byId("text").contains(event.target);
    const act = (isInText ? inText[event.key] : null) ?? (byId("letters").checked ? letters[event.key] : null);
    if (!act) return;
    event.preventDefault();
    act();
  });
}

function listenToTools(reader) {
  const select = byId("measure");
  for (const [name, measure] of Object.entries(reader.measures)) {
    select.append(make("option", { value: name }, measure.label));
  }
  select.addEventListener("change", () => reader.colourBy(select.value));
  byId("next-outlier").addEventListener("click", () => reader.goToOutlier(1));
  byId("previous-outlier").addEventListener("click", () => reader.goToOutlier(-1));
  const search = new Search(reader);
  const box = byId("search");
  let timer;
  box.addEventListener("input", () => {
    clearTimeout(timer);
    timer = setTimeout(() => search.find(box.value), 150);
  });
  box.addEventListener("keydown", (event) => {
    if (event.key === "Enter") search.step(event.shiftKey ? -1 : 1);
  });
  byId("next-match").addEventListener("click", () => search.step(1));
  byId("previous-match").addEventListener("click", () => search.step(-1));
}

function listenToPrinter(reader) {
  const closed = [];
  addEventListener("beforeprint", () => {
    let entries = 0;
    for (const block of reader.blocks) {
      if (entries >= PRINTED) break;
      reader.draw(block);
      entries = block.stop;
    }
    const all = reader.data.token.length;
    const note = byId("print-note");
    note.textContent = entries < all ? `The first ${entries.toLocaleString("en")} of ${all.toLocaleString("en")} tokens are printed.` : "";
    for (const block of reader.blocks) {
      if (block.start < entries || !block.isDrawn) continue;
      reader.clear(block);
    }
  });
  addEventListener("afterprint", () => {
    for (const block of reader.blocks) {
      reader.observer.unobserve(block.element);
      reader.observer.observe(block.element);
    }
  });
}

async function copy(element) {
  try {
    await navigator.clipboard.writeText(element.textContent);
    return "Copied";
  } catch {
    getSelection().selectAllChildren(element);
    return document.execCommand("copy") ? "Copied" : "Selected: copy it yourself";
  }
}

byId("copy")?.addEventListener("click", async () => {
  byId("copied").textContent = await copy(byId("command"));
});

async function begin(packed) {
  const data = await unpack(packed.textContent);
  packed.remove();
  const reader = new Reader(data, JSON.parse(byId("labels").textContent));
  listenToTools(reader);
  reader.colourBy(byId("measure").value);
  reader.layOut(byId("text"));
  listenToMouse(reader);
  listenToKeys(reader);
  listenToPrinter(reader);
  document.documentElement.dataset.ready = "";
}

const packed = byId("packed");
if (packed) {
  requestAnimationFrame(() => setTimeout(() => begin(packed).catch((error) => {
    byId("text").textContent = `The text cannot be shown: ${error.message}`;
    throw error;
  })));
}
