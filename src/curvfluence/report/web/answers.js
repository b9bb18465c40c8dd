"use strict";
(() => {
  const { make, bar, shown, fixed, raised, option, clipped } = parts;
  const source = document.getElementById("answers-data");
  if (!source) return;
  const data = JSON.parse(source.textContent);
  const { draw, named, labelled } = cards(data);
  const $ = (id) => document.getElementById(id);
  const slot = new Map(data.train.map((n, k) => [n, k]));
  const wrong = new Map(Object.entries(data.wrong));
  const pictures = data.cards.length > 0 && data.cards.every((card) => card.image);

  const said = (k) => (data.outputs && data.outputs.classes ? data.outputs.classes[k] : null);
  const right = (k) => said(k) === data.queryLabels[k];

  const WRONG = "The model is wrong: label → its answer";
  const RIGHT = "The model is right";
  // The query that the page opens at: wrong ones come first.
  const firstWrong = data.queryLabels.findIndex((label, k) => typeof label === "number" && said(k) !== null && !right(k));

  // Which queries are in the list: of one class, or all.
  const fill = () => {
    const only = $("of-class") ? $("of-class").value : "";
    const kept = $("query").value;
    const groups = { [WRONG]: [], [RIGHT]: [], "": [] };
    data.queries.forEach((q, k) => {
      const label = data.queryLabels[k];
      if (only !== "" && String(label) !== only) return;
      const known = said(k) !== null && typeof label === "number";
      const text = `${q}${named(label) ? ": " + clipped(named(label)) : ""}${known && !right(k) ? ` → ${clipped(named(said(k)))}` : ""}`;
      groups[!known ? "" : right(k) ? RIGHT : WRONG].push(option(k, text));
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
    const signed = values[k].some((value) => value < 0);
    const order = values[k].map((_, c) => c);
    const listed = order.length > 12 ? order.sort((a, b) => values[k][b] - values[k][a]).slice(0, 12) : order;
    const list = make("ul", "bars");
    for (const c of listed) {
      const value = values[k][c];
      const item = make("li", typeof label === "number" && (binary ? label === 1 : c === label) ? "true" : "");
      const name = binary ? named(1) : values[k].length > 1 && typeof label === "number" ? named(c) : values[k].length > 1 ? String(c) : "output";
      const text = make("span", "name", name);
      text.title = name;
      item.append(text, bar(value / top, signed), make("span", "value", kind === "probability" ? `${(100 * value).toFixed(1)}%` : shown(value)));
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

  const meter = ([name, value, share, words]) => {
    const item = make("li");
    item.append(make("span", "name", name), make("span", "value", value), bar(share), make("span", "small", words));
    return item;
  };

  // What speaks for believing the lists: bars are longer where more does.
  const showTrust = (k) => {
    const list = make("ul", "meters");
    list.append(...data.trust[k].map(meter));
    $("trust").replaceChildren(make("h2", "", "Can this be believed?"));
    if (list.children.length) $("trust").append(make("p", "note", `The fuller a bar, the more speaks for it. ${data.explained}`), list);
    else $("trust").append(make("p", "note", "Nothing to compare with: ask for a second rung with --beside."));
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

  const [HELP, HARM] = ["--c009e73", "--ce69f00"];

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
    const unit = [power ? `10${raised(power)}` : "", rung.units ? data[power ? "scaledUnit" : "unit"] : ""].filter(Boolean).join(" ");
    showQuery(k);
    showTrust(k);
    ["Most helpful", "Most harmful"].forEach((title, end) => {
      const box = $(`answer-${end}`);
      box.style.setProperty("--chip", `var(${end ? HARM : HELP})`);
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
    if (k === firstWrong && data.queries.length > 1) text += ": the first that it gets wrong, where this page opens";
    text += `. ${rung.name}, damping ${rung.damping}`;
    if (only !== "") text += `; among examples labelled ${named(Number(only))}`;
    if (other) text += `. ${data.rungs[1 - r].name} names the framed ones as well`;
    $("status").textContent = text + ".";
    $("verdict").textContent = data.verdicts[r][k];
    $("verdict").hidden = !data.verdicts[r][k];
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
    data.classes.forEach((name, c) => $(id).append(option(c, clipped(name))));
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
