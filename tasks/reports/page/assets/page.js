"use strict";
(() => {
  // Every text of a model or a data set goes in by textContent. Nothing here parses text as HTML.
  const ROW = 52, LONG = 20000, $ = (id) => document.getElementById(id);
  const HIDDEN = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u061c\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufeff]/g;
  const visible = (text) => text.replace(HIDDEN, (sign) => "⟦U+" + sign.codePointAt(0).toString(16).toUpperCase().padStart(4, "0") + "⟧");
  const unpacked = new Map();
  let index, shown = [], chosen = -1, trace = 0, current = null;

  async function unpack(id) {
    if (!unpacked.has(id)) {
      const bytes = Uint8Array.from(atob($(id).textContent), (sign) => sign.charCodeAt(0));
      const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
      if (unpacked.size > 8) unpacked.delete(unpacked.keys().next().value);
      unpacked.set(id, JSON.parse(await new Response(stream).text()));
    }
    return unpacked.get(id);
  }

  function make(name, className, text) {
    const element = document.createElement(name);
    if (className) element.className = className;
    if (text !== undefined) element.textContent = visible(String(text));
    return element;
  }

  /** Long texts are cut, since a browser takes seconds to lay out a line of a megabyte. */
  function textOf(text, className = "text") {
    const element = make("div", className, text.slice(0, LONG));
    if (text.length > LONG) {
      const more = make("button", "", `show all ${text.length.toLocaleString("en")} characters`);
      more.addEventListener("click", () => { element.textContent = visible(text); });
      element.append(make("br"), more);
    }
    return element;
  }

  const verdict = (value) => make("span", value === "right" ? "right" : "wrong", value === "right" ? "✓ right" : `✗ ${value}`);

  function facts(pairs) {
    const line = make("div", "facts");
    for (const [name, value] of pairs) if (value !== null && value !== "") line.append(make("span", "", `${name}: ${value}`));
    return line;
  }

  function svg(name, attributes, text) {
    const element = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    if (text !== undefined) element.textContent = text;
    return element;
  }

  /** The share of right rollouts after each piece. */
  function curve(view) {
    const points = view.pieces.map((piece, at) => [at, piece]).filter(([, piece]) => piece.total);
    if (points.length < 2) return null;
    const width = 640, height = 90, last = Math.max(1, view.pieces.length - 1);
    const x = (at) => 30 + (at / last) * (width - 40), y = (p) => 8 + (1 - p) * (height - 24);
    const chart = svg("svg", { class: "curve", viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": "share of right rollouts after each piece" });
    for (const p of [0, 0.5, 1]) chart.append(svg("line", { x1: 30, x2: width - 10, y1: y(p), y2: y(p) }), svg("text", { x: 4, y: y(p) + 3 }, p));
    if (view.threshold !== null) chart.append(svg("path", { class: "t", d: `M30 ${y(view.threshold)}H${width - 10}` }));
    chart.append(svg("path", { d: points.map(([at, piece], n) => `${n ? "L" : "M"}${x(at)} ${y(piece.right / piece.total)}`).join("") }));
    for (const [at, piece] of points) chart.append(svg("circle", { cx: x(at), cy: y(piece.right / piece.total), r: 2.5 }));
    const end = view.pieces.findIndex((piece) => piece.state === "added");
    if (end > 0) chart.append(svg("path", { class: "c", d: `M${x(end - 1)} 4V${height - 14}` }));
    chart.append(svg("text", { x: 30, y: height - 2 }, "first piece"), svg("text", { x: width - 60, y: height - 2 }, "last piece"));
    return chart;
  }

  function pieceOf(piece, number, threshold) {
    const element = make("div", `piece ${piece.state === "put back" ? "back" : piece.state}`);
    const gutter = make("div", "gutter");
    gutter.append(make("span", "state", piece.state === "unused" ? `${number}` : `${number} ${piece.state}`));
    if (piece.total) {
      const bar = make("div", "bar"), fill = make("i"), mark = make("u");
      fill.style.width = `${(100 * piece.right) / piece.total}%`;
      bar.append(fill);
      if (threshold !== null) { mark.style.left = `${100 * threshold}%`; bar.append(mark); }
      gutter.append(bar, make("div", "", `p ${piece.right}/${piece.total}`));
    }
    if (piece.note) gutter.append(make("div", "", piece.note));
    element.append(gutter, textOf(piece.text));
    return element;
  }

  function traceOf(view) {
    const part = make("section");
    part.append(make("h3", "", view.status), facts(Object.entries(view.facts)));
    const line = curve(view);
    if (line) part.append(line);
    view.pieces.forEach((piece, at) => part.append(pieceOf(piece, at + 1, view.threshold)));
    for (const text of view.texts) {
      const fold = make("details");
      fold.append(make("summary", "", `${text.title} (${text.tokens} tokens)`), textOf(text.text));
      part.append(fold);
    }
    return part;
  }

  function answersOf(answers) {
    const grid = make("div", "answers"), columns = new Map();
    for (const answer of answers) {
      if (!columns.has(answer.model)) columns.set(answer.model, grid.appendChild(make("div")));
      const card = make("div", "answer"), head = make("div", "facts");
      head.append(make("b", "", answer.model), verdict(answer.verdict), make("span", "", `${answer.tokens} tokens${answer.truncated ? ", cut off" : ""}`));
      card.append(head, facts(Object.entries(answer.facts)));
      for (const turn of answer.turns) {
        const element = make("div", turn.speaker ? `turn ${turn.speaker}` : "");
        if (turn.speaker) element.append(make("div", "who", turn.speaker === "long" ? "Long" : "Short"));
        element.append(textOf(turn.text));
        card.append(element);
      }
      columns.get(answer.model).append(card);
    }
    return grid;
  }

  function picturesOf(urls) {
    const box = make("div", "pictures");
    urls.forEach((url, at) => {
      const image = box.appendChild(make("img"));
      [image.src, image.alt] = [url, `image ${at + 1} of the problem`];
    });
    return box;
  }

  function draw() {
    const detail = $("detail");
    detail.replaceChildren();
    if (!current) return;
    detail.append(facts([["id", current.id], ["set", current.set], ["level", current.level], ["subject", current.subject], ["what happened", current.tags.join(", ")]]));
    if (current.images.length) detail.append(picturesOf(current.images));
    detail.append(textOf(current.text, "text problem"), facts([["Right answer", current.answer]]));
    if (current.traces.length) {
      const tabs = make("div", "tabs");
      current.traces.forEach((view, at) => {
        const tab = make("button", "", `${view.name}: ${view.tokens} tokens `);
        tab.append(verdict(view.verdict));
        tab.setAttribute("aria-pressed", String(at === trace));
        tab.addEventListener("click", () => { trace = at; draw(); document.querySelectorAll(".tabs button")[at].focus(); });
        tabs.append(tab);
      });
      detail.append(tabs, traceOf(current.traces[trace]));
    }
    if (current.answers.length) detail.append(answersOf(current.answers));
    detail.scrollTop = 0;
  }

  async function choose(place) {
    if (!shown.length) { chosen = -1; current = null; rows(); draw(); return; }
    chosen = Math.max(0, Math.min(place, shown.length - 1));
    const row = shown[chosen], list = $("list"), top = chosen * ROW;
    if (top < list.scrollTop) list.scrollTop = top;
    if (top + ROW > list.scrollTop + list.clientHeight) list.scrollTop = top + ROW - list.clientHeight;
    rows();
    const problems = await unpack(`block-${row.block}`);
    if (shown[chosen] !== row) return;
    [current, trace] = [problems[row.place], 0];
    draw();
    $("said").textContent = visible(`Problem ${row.id}${row.tags.length ? `: ${row.tags.join(", ")}` : ""}`);
    document.body.dataset.shown = row.id;
  }

  /** Only the rows in sight exist. */
  function rows() {
    const list = $("list"), box = $("rows"), first = Math.max(0, Math.floor(list.scrollTop / ROW) - 3);
    const last = Math.min(shown.length, first + Math.ceil(list.clientHeight / ROW) + 7);
    box.style.height = `${shown.length * ROW}px`;
    box.replaceChildren();
    for (let at = first; at < last; at++) {
      const row = shown[at], element = make("div", "row");
      element.id = `row-${at}`;
      element.setAttribute("role", "option");
      element.setAttribute("aria-setsize", shown.length);
      element.setAttribute("aria-posinset", at + 1);
      element.setAttribute("aria-selected", String(at === chosen));
      element.style.top = `${at * ROW}px`;
      element.append(make("b", "", row.title), make("span", "", [index.sets[row.set], row.level === null ? "" : `level ${row.level}`, row.tags.join(", ")].filter(Boolean).join(" · ")));
      element.addEventListener("click", () => choose(at));
      box.append(element);
    }
    if ($(`row-${chosen}`)) list.setAttribute("aria-activedescendant", `row-${chosen}`);
    else list.removeAttribute("aria-activedescendant");
  }

  function filter() {
    const words = $("search").value.toLowerCase().split(/\s+/).filter(Boolean);
    const [set, level, tag] = ["set", "level", "tag"].map((id) => $(id).value);
    shown = index.rows.filter((row) =>
      (!set || index.sets[row.set] === set) && (!level || String(row.level) === level) && (!tag || row.tags.includes(tag)) &&
      words.every((word) => row.found.includes(word)));
    $("count").textContent = `${shown.length.toLocaleString("en")} of ${index.rows.length.toLocaleString("en")} problems`;
    $("list").scrollTop = 0;
    choose(0);
  }

  function options(id, values) {
    const select = $(id);
    select.append(new Option("all", ""));
    for (const value of values) select.append(new Option(visible(String(value)), value));
    select.parentElement.hidden = values.length < 2;
    select.addEventListener("change", filter);
  }

  function keys(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const typing = /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName);
    if (typing) { if (event.key === "Escape") event.target.blur(); return; }
    const steps = { j: 1, k: -1 }, sides = { l: 1, h: -1 };
    if (event.target === $("list")) Object.assign(steps, { ArrowDown: 1, ArrowUp: -1, PageDown: 10, PageUp: -10 });
    if (event.key === "/") { event.preventDefault(); $("search").focus(); }
    else if (event.key in steps) { event.preventDefault(); choose(chosen + steps[event.key]); }
    else if (event.key in sides && current && current.traces.length) {
      trace = (trace + sides[event.key] + current.traces.length) % current.traces.length;
      draw();
    }
  }

  async function start() {
    index = await unpack("index");
    if (!index.rows.length) return;
    let block = -1;
    index.rows = index.rows.map(([id, title, set, level, subject, tags, place]) => {
      if (place === 0) block += 1;
      const names = tags.map((tag) => index.tags[tag]);
      return { id, title, set, level, tags: names, place, block, found: `${id} ${title} ${subject || ""}`.toLowerCase() };
    });
    index.rows.sort((a, b) => (index.sets[b.set] === "training") - (index.sets[a.set] === "training"));
    const levels = [...new Set(index.rows.map((row) => row.level).filter((level) => level !== null))].sort((a, b) => a - b);
    options("set", index.sets); options("level", levels); options("tag", index.tags);
    $("thoughts").hidden = $("to-thoughts").hidden = false;
    $("notes").textContent = visible($("page-notes").value);
    $("search").addEventListener("input", filter);
    $("list").addEventListener("scroll", rows);
    window.addEventListener("resize", rows);
    document.addEventListener("keydown", keys);
    filter();
  }

  start();
})();
