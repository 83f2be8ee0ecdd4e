"use strict";
(() => {
  const PAGE = 50;
  const $ = (selector, root = document) => root.querySelector(selector);
  const $$ = (selector, root = document) => [...root.querySelectorAll(selector)];
  // Text only ever becomes text: nothing in the data can become markup.
  const el = (tag, attributes = {}, ...children) => {
    const node = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (name === "on") for (const [event, run] of Object.entries(value)) node.addEventListener(event, run);
      else if (value !== null && value !== false) node.setAttribute(name, value === true ? "" : value);
    }
    node.append(...children.filter((child) => child !== null).map((child) => child instanceof Node ? child : String(child)));
    return node;
  };
  const count = (n) => n.toLocaleString("en-US");
  const number = (value) => value === null ? "" : Math.abs(value) >= 1e5 || (value !== 0 && Math.abs(value) < 1e-3) ? value.toExponential(2) : String(+value.toPrecision(4));
  const time = (s) => s === null ? "" : s < 1 ? `${+(1000 * s).toPrecision(3)} ms` : `${+s.toPrecision(3)} s`;

  // The place in the page (tab, run, eps) is kept behind the #, so that a reload or a link comes back to it.
  const place = new URLSearchParams(location.hash.slice(1));
  const remember = (name, value) => {
    place.set(name, value);
    history.replaceState(null, "", "#" + place);
  };

  const themes = ["auto", "light", "dark"];
  const stored = () => { try { return localStorage.getItem("certify-theme"); } catch { return null; } };
  const setTheme = (theme) => {
    if (theme === "auto") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = theme;
    const button = $("#theme");
    button.textContent = `Theme: ${theme}`;
    button.hidden = false;
    button.dataset.theme = theme;
    try { localStorage.setItem("certify-theme", theme); } catch { /* a browser may refuse it */ }
  };

  const copy = async (text, button) => {
    try {
      await navigator.clipboard.writeText(text);
    } catch {
      const area = el("textarea", { style: "position:fixed;opacity:0" });
      area.value = text;
      (button.closest("dialog") || document.body).append(area);
      area.select();
      document.execCommand("copy");
      area.remove();
    }
    const before = button.textContent;
    button.textContent = "Copied";
    setTimeout(() => { button.textContent = before; }, 1200);
  };

  // A table of many rows: filtered and sorted as numbers of rows, of which one page is drawn.
  const table = (root, columns, filters) => {
    const state = { rows: [], kept: [], page: 0, sort: null, down: false, scope: null };
    const head = el("tr");
    const body = el("tbody");
    const where = el("span", { role: "status" });
    const turn = (title, to) => el("button", { type: "button", on: { click: () => { state.page = to(); draw(); } } }, title);
    const last = () => Math.max(0, Math.ceil(state.kept.length / PAGE) - 1);
    const buttons = [
      turn("First", () => 0), turn("Previous", () => state.page - 1), turn("Next", () => state.page + 1), turn("Last", last),
    ];
    for (const column of columns) {
      const button = el("button", { type: "button", on: { click: () => {
        state.down = state.sort === column ? !state.down : Boolean(column.down);
        state.sort = column;
        arrange();
      } } }, column.title);
      head.append(el("th", { scope: "col", class: column.numeric ? "num" : null }, column.value ? button : column.title));
    }
    const draw = () => {
      const from = state.page * PAGE;
      const shown = state.kept.slice(from, from + PAGE);
      body.replaceChildren(...shown.map((row) => el("tr", {}, ...columns.map((column) =>
        el("td", { class: [column.numeric ? "num" : "", column.wrap ? "wrap" : ""].join(" ").trim() || null }, column.draw(row, state.scope))))));
      where.textContent = state.kept.length ? `${count(from + 1)}–${count(from + shown.length)} of ${count(state.kept.length)}` : "no samples";
      buttons[0].disabled = buttons[1].disabled = state.page === 0;
      buttons[2].disabled = buttons[3].disabled = state.page >= last();
      $$("th", head).forEach((th, k) => {
        const on = state.sort === columns[k];
        if (on) th.setAttribute("aria-sort", state.down ? "descending" : "ascending"); else th.removeAttribute("aria-sort");
        const button = $("button", th);
        if (button) button.textContent = columns[k].title + (on ? (state.down ? " ↓" : " ↑") : "");
      });
    };
    const arrange = () => {
      const passes = filters.map((filter) => filter.test(state.scope)).filter(Boolean);
      state.kept = state.rows.filter((row) => passes.every((pass) => pass(row)));
      if (state.sort) {
        const value = state.sort.value, sign = state.down ? -1 : 1;
        const keys = new Map(state.kept.map((row) => [row, value(row, state.scope)]));
        state.kept.sort((a, b) => {
          const x = keys.get(a), y = keys.get(b);
          if (x === null || y === null) return (x === null) - (y === null) || a - b; // what has no value comes last
          return x < y ? -sign : x > y ? sign : a - b;
        });
      }
      state.page = 0;
      draw();
    };
    filters.forEach((filter) => filter.input.addEventListener("input", arrange));
    root.replaceChildren(
      filters.length ? el("div", { class: "tools" }, ...filters.map((filter) => el("label", {}, filter.title, filter.input))) : "",
      el("div", { class: "tablecard" },
        el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "samples" }, el("table", { class: "data" }, el("thead", {}, head), body)),
        el("nav", { class: "pager", "aria-label": "Pages" }, where, ...buttons)),
    );
    return { show: (rows, scope, sort, down) => {
      state.rows = rows;
      state.scope = scope;
      if (sort && !state.sort) { state.sort = sort; state.down = Boolean(down); }
      filters.forEach((filter) => filter.fill(scope));
      arrange();
    } };
  };

  const start = () => {
    const data = JSON.parse($("#certify-data").textContent);
    const KINDS = data.kinds;
    const choice = { run: 0, eps: 0 };
    const current = () => {
      const run = data.runs[choice.run], view = run.views[choice.eps];
      return { run, view, samples: run.samples, columns: view.columns };
    };
    const text = (list, code) => code === null ? "" : list[code];
    const dot = (kind) => el("span", {}, el("i", { class: `dot ${kind}`, "aria-hidden": "true" }), kind);
    const sample = (row, scope) => el("button", { type: "button", class: "link", on: { click: () => detail(row, scope) } }, scope.samples.id[row]);
    const again = (row, scope) => scope.view.retry.one[0] + scope.samples.id[row] + scope.view.retry.one[1];
    const by = (name) => (row, scope) => scope.columns[name][row];
    const id = { title: "sample", numeric: true, value: (row, scope) => scope.samples.id[row], draw: sample };
    const label = { title: "label", numeric: true, value: (row, scope) => scope.samples.label[row], draw: (row, scope) => scope.samples.label[row] };
    const lower = { title: "lower bound", numeric: true, down: true, value: by("lower"), draw: (row, scope) => number(scope.columns.lower[row]) };
    const upper = { title: "margin shown", numeric: true, value: by("upper"), draw: (row, scope) => number(scope.columns.upper[row]) };
    const stage = { title: "stage", value: (row, scope) => text(scope.view.stages, scope.columns.stage[row]), draw: (row, scope) => text(scope.view.stages, scope.columns.stage[row]) };
    const seconds = { title: "time", numeric: true, down: true, value: by("seconds"), draw: (row, scope) => time(scope.columns.seconds[row]) };
    const gap = (row, scope) => scope.columns.lower[row] === null ? null : -scope.columns.lower[row];
    const lacks = { title: "lacks", numeric: true, value: gap, draw: (row, scope) => number(gap(row, scope)) };
    const kind = { title: "verdict", value: by("kind"), draw: (row, scope) => dot(KINDS[scope.columns.kind[row]]) };
    const becomes = (row, scope) => scope.columns.target[row] ?? (scope.samples.predicted[row] === scope.samples.label[row] ? null : scope.samples.predicted[row]);
    const target = { title: "witness's class", numeric: true, value: becomes, draw: (row, scope) => becomes(row, scope) ?? "" };
    const reason = { title: "reason", wrap: true, value: by("reason"), draw: (row, scope) => text(scope.view.reasons, scope.columns.reason[row]) };
    const retry = { title: "", draw: (row, scope) => el("button", { type: "button", class: "copy", on: { click: (event) => copy(again(row, scope), event.target) } }, "Copy command") };

    // A select whose options are what the column holds, with how many there are of each.
    const select = (title, key, names) => {
      const input = el("select", {});
      return { title, input,
        fill: (scope) => {
          const before = input.value, counts = new Map();
          scope.rows.forEach((row) => { const k = key(row, scope); if (k !== null) counts.set(k, (counts.get(k) || 0) + 1); });
          const keys = [...counts.keys()].sort((a, b) => a - b);
          input.replaceChildren(el("option", { value: "" }, "all"), ...keys.map((k) => el("option", { value: String(k) }, `${names(k, scope)} (${count(counts.get(k))})`)));
          input.value = keys.map(String).includes(before) ? before : "";
        },
        test: (scope) => input.value === "" ? null : (row) => String(key(row, scope)) === input.value,
      };
    };
    const search = () => {
      const input = el("input", { type: "search", inputmode: "numeric", placeholder: "3, 17, 20-25" });
      const ranges = () => input.value.split(",").map((part) => part.trim().match(/^(\d+)(?:\s*-\s*(\d+))?$/)).filter(Boolean).map((m) => [+m[1], +(m[2] ?? m[1])]);
      return { title: "samples", input, fill: () => {}, test: (scope) => {
        const wanted = ranges();
        return wanted.length ? (row) => wanted.some(([a, b]) => a <= scope.samples.id[row] && scope.samples.id[row] <= b) : null;
      } };
    };
    const filters = () => [
      select("verdict", by("kind"), (k) => KINDS[k]),
      select("stage", by("stage"), (k, scope) => scope.view.stages[k]),
      select("label", (row, scope) => scope.samples.label[row], (k) => k),
      search(),
    ];
    const samples = table($("#samples-table"), [id, label, kind, stage, lower, upper, target, seconds, reason], filters());
    const open = table($("#open-table"), [id, label, lacks, lower, upper, stage, seconds, reason, retry], []);

    const detail = (row, scope) => {
      const { columns: c, samples: s, view } = scope;
      const line = (name, value) => value === "" || value === null ? [] : [el("dt", {}, name), el("dd", {}, value)];
      const card = $(`.witness[data-sample="${s.id[row]}"]`, shownView("#witnesses") || document.createElement("div"));
      const command = again(row, scope);
      $("#detail-body").replaceChildren(
        el("h2", { id: "detail-title" }, `Sample ${s.id[row]}, eps ${view.eps}`),
        el("dl", { class: "list" },
          ...line("verdict", dot(KINDS[c.kind[row]])),
          ...line("label", s.label[row]),
          ...line("clean input's class", s.predicted[row]),
          ...line("witness's class", c.target[row]),
          ...line("distance", number(c.distance[row])),
          ...line("stage", text(view.stages, c.stage[row])),
          ...line("lower bound of the margin", number(c.lower[row])),
          ...line("smallest margin shown", number(c.upper[row])),
          ...line("checked", text(view.levels, c.level[row])),
          ...line("certificate", c.bytes[row] === null ? "" : `${count(c.bytes[row])} bytes`),
          ...line("time", time(c.seconds[row])),
          ...line("reason", text(view.reasons, c.reason[row]))),
        card ? el("p", {}, el("button", { type: "button", class: "link", on: { click: () => { $("#detail").close(); show("witnesses"); card.classList.add("found"); card.scrollIntoView({ block: "center" }); } } }, "Show the witness")) : "",
        el("p", { class: "note" }, "To run it again:"),
        el("div", { class: "command" }, el("pre", {}, el("code", {}, command)), el("button", { type: "button", class: "copy", on: { click: (event) => copy(command, event.target) } }, "Copy")),
      );
      $("#detail").showModal();
    };

    const tabs = $$('[role="tab"]');
    const show = (name) => {
      const chosen = tabs.find((tab) => tab.getAttribute("aria-controls") === name) || tabs[0];
      for (const tab of tabs) {
        const on = tab === chosen;
        tab.setAttribute("aria-selected", on);
        tab.tabIndex = on ? 0 : -1;
        $("#" + tab.getAttribute("aria-controls")).hidden = !on;
      }
      chosen.scrollIntoView({ block: "nearest", inline: "nearest" });
      remember("tab", chosen.getAttribute("aria-controls"));
    };
    const shownView = (panel) => $$(`${panel} .view`).find((view) => !view.hidden);

    const choose = () => {
      for (const view of $$(".view")) {
        view.hidden = +view.dataset.run !== choice.run || (view.dataset.eps !== undefined && +view.dataset.eps !== choice.eps);
      }
      $$("[data-of-run]").forEach((set) => { set.hidden = +set.dataset.ofRun !== choice.run; });
      const scope = current();
      scope.rows = scope.samples.id.map((_, row) => row);
      const of = (name) => scope.rows.filter((row) => scope.columns.kind[row] === KINDS.indexOf(name));
      samples.show(scope.rows, scope, null);
      const unresolved = of("unknown");
      $("#open-table").hidden = !unresolved.length;
      open.show(unresolved, { ...scope, rows: unresolved }, lacks);
      $$("[data-count]").forEach((n) => { n.textContent = count(of(n.dataset.count).length); });
      remember("run", choice.run);
      remember("eps", choice.eps);
    };

    tabs.forEach((tab, k) => {
      tab.onclick = () => show(tab.getAttribute("aria-controls"));
      tab.onkeydown = (event) => {
        const to = { ArrowRight: k + 1, ArrowLeft: k - 1, Home: 0, End: tabs.length - 1 }[event.key];
        if (to === undefined) return;
        event.preventDefault();
        const next = tabs[(to + tabs.length) % tabs.length];
        next.focus();
        show(next.getAttribute("aria-controls"));
      };
    });
    const within = (value, length) => Math.min(Math.max(0, Math.trunc(+value) || 0), length - 1);
    choice.run = within(place.get("run"), data.runs.length);
    choice.eps = within(place.get("eps"), data.runs[choice.run].views.length);
    const pick = $("#pick");
    if (pick) {
      const check = (name, value) => { const input = $(`input[name="${name}"][value="${value}"]`, pick); if (input) input.checked = true; };
      check("run", choice.run);
      check(`eps${choice.run}`, choice.eps);
      pick.hidden = false;
      pick.onchange = (event) => {
        if (event.target.name === "run") {
          // The same eps in the other run, if it has it.
          const eps = current().view.bracket.eps_value;
          choice.run = +event.target.value;
          choice.eps = Math.max(0, data.runs[choice.run].views.findIndex((view) => view.bracket.eps_value === eps));
          check(`eps${choice.run}`, choice.eps);
        } else choice.eps = +event.target.value;
        choose();
      };
    }
    $(".tabs").hidden = false;
    choose();
    show(place.get("tab") || "overview");
    $$(".command .copy").forEach((button) => { button.onclick = () => copy($("code", button.parentNode).textContent, button); });
    const download = $("#download");
    download.hidden = false;
    download.onclick = () => {
      const address = URL.createObjectURL(new Blob([$("#certify-data").textContent], { type: "application/json" }));
      el("a", { href: address, download: "certify-report.json" }).click();
      setTimeout(() => URL.revokeObjectURL(address), 1000);
    };
  };

  // While a run goes on (certify serve): ask how it stands, and take the newer page in when there is one.
  const live = async (address) => {
    const list = document.body.dataset.list !== undefined;
    let seen = null, next = 0;
    for (;;) {
      let state;
      try { state = await (await fetch(address, { cache: "no-store" })).json(); } catch { state = null; }
      const box = $("#live");
      if (box) {
        box.hidden = Boolean(state) && !state.running;
        box.textContent = state === null ? "The server does not answer; this is the last that it said." : `Running: ${count(state.done)} of ${count(state.total)} decided. This page follows.`;
      }
      if (state && seen !== null && state.version !== seen && Date.now() > next) await take();
      if (state && seen === null) seen = state.version;
      if (state && !state.running && state.version === seen && !list) return;
      await new Promise((wake) => setTimeout(wake, 2000));

      async function take() {
        const begin = Date.now();
        try {
          const page = new DOMParser().parseFromString(await (await fetch(location.pathname, { cache: "no-store" })).text(), "text/html");
          const dialog = $("#detail");
          if ((dialog && dialog.open) || $("details[open]")) return; // somebody is reading
          const y = scrollY, focus = document.activeElement && document.activeElement.id;
          $("#main").replaceWith(document.adoptNode($("#main", page)));
          if (!list) start();
          scrollTo(0, y);
          if (focus) $("#" + CSS.escape(focus))?.focus();
          seen = state.version;
          next = Date.now() + Math.max(4000, 10 * (Date.now() - begin)); // the run needs the machine more
        } catch { /* the next round tries again */ }
      }
    }
  };

  setTheme(themes.includes(stored()) ? stored() : "auto");
  $("#theme").onclick = (event) => setTheme(themes[(themes.indexOf(event.target.dataset.theme) + 1) % themes.length]);
  if ($("#certify-data")) start();
  if (document.body.dataset.live) live(document.body.dataset.live);
})();
