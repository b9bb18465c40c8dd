"use strict";
(() => {
  const { make, shown, fixed, raised, option } = parts;
  const source = document.getElementById("answers-data");
  if (!source) return;
  const data = JSON.parse(source.textContent);
  const { draw, named, labelled } = cards(data);
  const $ = (id) => document.getElementById(id);
  const slot = new Map(data.train.map((n, k) => [n, k]));
  const wrong = new Map(Object.entries(data.wrong));
  const minus = (value, digits) => value.toFixed(digits).replace("-", "−");
  const pictures = data.cards.length > 0 && data.cards.every((card) => card.image);

  const said = (k) => (data.outputs && data.outputs.classes ? data.outputs.classes[k] : null);
  const right = (k) => said(k) === data.queryLabels[k];

  // Which queries are in the list: of one class, or all.
  const fill = () => {
    const only = $("of-class") ? $("of-class").value : "";
    const kept = $("query").value;
    const groups = { "The model is wrong": [], "The model is right": [], "": [] };
    data.queries.forEach((q, k) => {
      const label = data.queryLabels[k];
      if (only !== "" && String(label) !== only) return;
      const known = said(k) !== null && typeof label === "number";
      const text = `${q}${named(label) ? ": " + named(label) : ""}${known && !right(k) ? `, taken for ${named(said(k))}` : ""}`;
      groups[!known ? "" : right(k) ? "The model is right" : "The model is wrong"].push(option(k, text));
    });
    $("query").replaceChildren();
    for (const [name, options] of Object.entries(groups)) {
      if (!options.length) continue;
      if (!name) { $("query").append(...options); continue; }
      const group = make("optgroup");
      group.label = name;
      group.append(...options);
      $("query").append(group);
    }
    $("query").value = kept;
    if ($("query").selectedIndex < 0) $("query").selectedIndex = 0;
  };

  const bars = (k) => {
    const { kind, values } = data.outputs;
    const label = data.queryLabels[k];
    const binary = kind === "probability" && values[k].length === 1;
    const top = kind === "probability" ? 1 : Math.max(...values[k].map(Math.abs), 1e-12);
    const order = values[k].map((_, c) => c);
    const listed = order.length > 12 ? order.sort((a, b) => values[k][b] - values[k][a]).slice(0, 12) : order;
    const list = make("ul", "bars");
    for (const c of listed) {
      const value = values[k][c];
      const item = make("li", typeof label === "number" && (binary ? label === 1 : c === label) ? "true" : "");
      const bar = make("span", "bar");
      const part = make("i");
      part.style.left = "0";
      part.style.width = `${(100 * Math.abs(value)) / top}%`;
      bar.append(part);
      const name = binary ? named(1) : values[k].length > 1 && typeof label === "number" ? named(c) : values[k].length > 1 ? String(c) : "output";
      const text = make("span", "name", name);
      text.title = name;
      item.append(text, bar, make("span", "value", kind === "probability" ? `${(100 * value).toFixed(1)}%` : shown(value)));
      list.append(item);
    }
    const title = kind === "probability" ? "Model’s probabilities" : "Model’s outputs";
    list.setAttribute("aria-label", title);
    return [make("h3", "sub", title), list];
  };

  const showQuery = (k) => {
    const box = $("asked");
    const [before, after] = draw(data.queryCards[k], `Query ${data.queries[k]}`);
    const left = make("div");
    const rest = make("div");
    left.append(...before);
    const label = labelled(data.queryLabels[k]);
    if (label) rest.append(make("p", "label", label[0].toUpperCase() + label.slice(1)));
    rest.append(...after);
    if (data.outputs) rest.append(...bars(k));
    const body = make("div", before.length ? "body" : "");
    if (before.length) body.append(left);
    body.append(rest);
    box.replaceChildren(make("h2", "", `Query ${data.queries[k]}`), body);
  };

  const meter = (title, value, share, text) => {
    const item = make("li");
    const bar = make("span", "bar");
    const part = make("i");
    part.style.left = "0";
    part.style.width = `${100 * Math.max(0, Math.min(1, share))}%`;
    bar.append(part);
    item.append(make("span", "name", title), bar, make("span", "value", value), make("span", "small", text));
    return item;
  };

  // What speaks for believing the lists, as numbers: bars are longer where more does.
  const showTrust = (k) => {
    const list = make("ul", "meters");
    for (const rung of data.rungs) {
      if (!rung.residual) continue;
      const value = rung.residual[k];
      list.append(meter(`${rung.name}: inverse`, value === null ? "–" : shown(value), value === null ? 0 : 1 - value,
        "relative residual against the exact GGN: 0 is exact, 1 no better than nothing"));
    }
    const told = data.agreement;
    if (told) {
      const [a, b] = data.rungs.map((rung) => rung.name);
      const rho = told.correlation[k];
      list.append(meter(`${a} and ${b}: ranks`, rho === null ? "–" : minus(rho, 2), rho === null ? 0 : rho,
        "rank correlation over all training examples"));
      list.append(meter(`${a} and ${b}: lists`, `${told.top[k]} of ${told.k}`, told.top[k] / told.k,
        `of the most helpful are in both; of the most harmful ${told.bottom[k]}`));
    }
    $("trust").replaceChildren(make("h2", "", "Can this be believed?"), list);
    if (!list.children.length) $("trust").append(make("p", "note", "Nothing to compare with: ask for a second rung with --beside."));
  };

  const powerOf = (values) => {
    const largest = Math.max(...values.map(Math.abs), 0);
    return largest > 0 ? 3 * Math.floor(Math.log10(largest) / 3 + 1e-9) : 0;
  };

  const example = (n, value, power, k, both) => {
    const item = make("li", both ? "shared" : "");
    const at = slot.get(n);
    const label = labelled(data.labels[at]);
    const shares = data.tokens[k] ? data.tokens[k][n] : null;
    const [before, after] = draw(data.cards[at], `Training example ${n}${label ? ", " + label : ""}`,
      { shares, shift: data.shift, other: data.queryCards[k] });
    const what = make("span", "what");
    what.append(make("span", "value", fixed(value / 10 ** power)));
    if (label) what.append(" ", make("span", "small", label));
    what.append(" ", make("span", "small", `no. ${n}`));
    if (both) what.append(" ", make("span", "small both", "in both"));
    const truth = wrong.get(String(n));
    if (truth !== undefined) what.append(" ", make("span", "small wrong", truth === null ? "wrong label" : `truly ${named(truth)}`));
    item.append(...before, what, ...after);
    item.dataset.example = n;
    return item;
  };

  const lists = (rung, k, only) => {
    if (only === "") return [0, 1].map((end) => [rung.examples[end][k], rung.values[end][k]]);
    return [0, 1].map((end) => [rung.within.examples[end][only][k], rung.within.values[end][only][k]]);
  };

  const show = () => {
    const k = Number($("query").value);
    const r = Number($("rung").value);
    const rung = data.rungs[r];
    const only = $("labelled") ? $("labelled").value : "";
    const ends = lists(rung, k, only);
    const other = data.rungs.length > 1 ? lists(data.rungs[1 - r], k, only) : null;
    const power = powerOf(ends.flatMap(([, values]) => values));
    const unit = [power ? `10${raised(power)}` : "", rung.units ? data.unit : ""].filter(Boolean).join(" ");
    showQuery(k);
    showTrust(k);
    ["Most helpful", "Most harmful"].forEach((title, end) => {
      const box = $(`answer-${end}`);
      box.style.setProperty("--chip", `var(${rung.colour})`);
      const list = make("ol", "examples" + (pictures ? "" : " rows"));
      list.setAttribute("aria-label", `${title} by ${rung.name}`);
      const shared = new Set(other ? other[end][0] : []);
      const [indices, values] = ends[end];
      indices.forEach((n, i) => list.append(example(n, values[i], power, k, shared.has(n))));
      box.replaceChildren(make("h2", "", title + (unit ? `, in ${unit}` : "")), list);
      if (!indices.length) box.append(make("p", "note", "No training example has this label."));
    });
    const label = labelled(data.queryLabels[k]);
    let text = `Query ${data.queries[k]}${label ? ", " + label : ""}`;
    if (said(k) !== null) text += right(k) ? ", which the model gets right" : `, which the model takes for ${named(said(k))}`;
    text += `. ${rung.name}, damping ${rung.damping}`;
    if (only !== "") text += `; among examples labelled ${named(Number(only))}`;
    if (other) text += `. ${data.rungs[1 - r].name} names the highlighted ones as well`;
    $("status").textContent = text + ".";
    $("previous").disabled = $("query").selectedIndex === 0;
    $("next").disabled = $("query").selectedIndex === $("query").options.length - 1;
    const place = new URLSearchParams({ query: data.queries[k], rung: rung.name });
    if (only !== "") place.set("labelled", only);
    history.replaceState(null, "", `#${place}`);
  };

  // A link to one query: explorer.html#query=17&rung=EKFAC&labelled=3
  const follow = () => {
    const place = new URLSearchParams(location.hash.slice(1));
    const k = data.queries.indexOf(Number(place.get("query") ?? NaN));
    const r = data.rungs.findIndex((rung) => rung.name === place.get("rung"));
    if ($("of-class") && k >= 0) { $("of-class").value = ""; fill(); }
    if (k >= 0) $("query").value = k;
    if (r >= 0) $("rung").value = r;
    if ($("labelled")) {
      $("labelled").value = place.get("labelled") ?? "";
      if ($("labelled").selectedIndex < 0) $("labelled").value = "";
    }
  };

  data.rungs.forEach((rung, r) => $("rung").append(option(r, rung.name)));
  for (const id of ["of-class", "labelled"]) {
    if (!$(id)) continue;
    $(id).append(option("", "any"));
    data.classes.forEach((name, c) => $(id).append(option(c, name)));
    $(id).value = "";
  }
  fill();
  follow();
  const move = (step) => { $("query").selectedIndex += step; show(); };
  $("previous").addEventListener("click", () => move(-1));
  $("next").addEventListener("click", () => move(1));
  if ($("of-class")) $("of-class").addEventListener("change", () => { fill(); show(); });
  for (const id of ["query", "rung", "labelled"]) if ($(id)) $(id).addEventListener("change", show);
  window.addEventListener("hashchange", () => { follow(); show(); });
  $("controls").addEventListener("submit", (event) => event.preventDefault());
  $("controls").hidden = false;
  $("bench").hidden = false;
  show();
})();
