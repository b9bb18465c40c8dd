"use strict";
(() => {
  const { make, bar, shown, fixed, raised, option } = parts;
  const source = document.getElementById("explorer-data");
  if (!source) return;
  const data = JSON.parse(source.textContent);
  const $ = (id) => document.getElementById(id);
  const slot = new Map(data.train.map((n, k) => [n, k]));
  const wrong = new Map(Object.entries(data.wrong));
  const pickers = [$("rung-0"), $("rung-1")];

  const named = (target) => {
    if (target === undefined || target === null) return "";
    if (Array.isArray(target)) return target.map((v) => shown(v)).join(", ") + (data.targetUnit ? " " + data.targetUnit : "");
    return data.classes ? String(data.classes[target]) : String(target);
  };
  const targetOf = (k) => data.targets && data.targets[k];
  const isClass = (target) => typeof target === "number";

  const believed = (k) => {
    if (!data.outputs || !isClass(targetOf(k))) return null;
    const values = data.outputs.values[k];
    if (values.length === 1) return data.outputs.kind === "probability" ? Number(values[0] > 0.5) : null;
    return values.indexOf(Math.max(...values));
  };

  const tile = (which, k, label) => {
    const { width, height } = data.image;
    const count = which === "train" ? data.train.length : data.queries.length;
    const across = Math.ceil(Math.sqrt(count));
    const down = Math.ceil(count / across);
    const at = (i, n) => (n > 1 ? (100 * i) / (n - 1) : 0) + "%";
    const element = make("span", "tile " + which);
    element.setAttribute("role", "img");
    element.setAttribute("aria-label", label);
    element.style.aspectRatio = `${width} / ${height}`;
    element.style.backgroundSize = `${across * 100}% ${down * 100}%`;
    element.style.backgroundPosition = `${at(k % across, across)} ${at(Math.floor(k / across), down)}`;
    return element;
  };

  // A feature row as colours: blue below the mean of the training set, orange above.
  const strip = (row) => {
    const element = make("span", "strip");
    element.setAttribute("aria-hidden", "true");
    row.forEach((value, i) => {
      const std = data.features.std[i];
      const z = std > 0 ? Math.max(-2, Math.min(2, (value - data.features.mean[i]) / std)) : 0;
      const cell = make("i");
      cell.style.background = `color-mix(in srgb, var(${z < 0 ? "--c0072b2" : "--ce69f00"}) ${Math.abs(z) * 45 + 5}%, var(--raised))`;
      cell.title = `${data.features.names[i]}: ${shown(value)}`;
      element.append(cell);
    });
    return element;
  };

  const featureTable = (columns) => {
    const table = make("table", "features");
    const head = table.createTHead().insertRow();
    for (const name of ["feature", ...columns.map((c) => c[0])]) {
      const th = make("th", "", name);
      th.scope = "col";
      head.append(th);
    }
    const body = table.createTBody();
    data.features.names.forEach((name, i) => {
      const row = body.insertRow();
      const th = make("th", "", name);
      th.scope = "row";
      row.append(th);
      for (const [, values] of columns) row.insertCell().textContent = shown(values[i]);
    });
    return table;
  };

  const showQuery = (k) => {
    const box = $("asked");
    const target = targetOf(k);
    box.replaceChildren(make("h3", "", `Query ${data.queries[k]}`));
    const body = make("div", "body");
    const left = make("div");
    const right = make("div");
    if (data.image) left.append(tile("query", k, `Image of query ${data.queries[k]}`));
    if (target !== undefined && target !== null) right.append(make("p", "label", `Label: ${named(target)}`));
    if (data.outputs) right.append(...bars(k));
    else right.append(make("p", "note", "The model’s output was not kept in this study."));
    if (data.features) {
      left.append(strip(data.features.queries[k]));
      const details = make("details");
      details.append(make("summary", "", "Features"), featureTable([["query", data.features.queries[k]]]));
      right.append(details);
    }
    body.append(left, right);
    box.append(body);
  };

  const bars = (k) => {
    const kind = data.outputs.kind;
    const values = data.outputs.values[k];
    const target = targetOf(k);
    const list = make("ul", "bars");
    const top = kind === "probability" ? 1 : Math.max(...values.map(Math.abs), 1e-12);
    const signed = values.some((value) => value < 0);
    const binary = kind === "probability" && values.length === 1;
    values.forEach((value, c) => {
      const item = make("li", isClass(target) && (binary ? target === 1 : c === target) ? "true" : "");
      const name = binary ? named(1) : values.length > 1 ? named(c) : "output";
      const text = kind === "probability" ? `${(100 * value).toFixed(1)}%` : shown(value);
      const label = make("span", "name", name);
      label.title = name;
      item.append(label, bar(value / top, signed), make("span", "value", text));
      list.append(item);
    });
    const title = kind === "probability" ? "Model’s probabilities" : "Model’s outputs";
    list.setAttribute("aria-label", title);
    return [make("h4", "", title), list];
  };

  // One power of a thousand for both lists, so that their values compare at a glance.
  const powerOf = (rungs, k) => {
    const largest = Math.max(...rungs.flatMap((rung) => rung.values[k].flat().map(Math.abs)));
    return largest > 0 ? 3 * Math.floor(Math.log10(largest) / 3 + 1e-9) : 0;
  };

  const unitOf = (rung, power) => {
    const scale = power ? `10${raised(power)}` : "";
    const words = [scale, rung.units ? data[power ? "scaledUnit" : "unit"] : ""].filter(Boolean).join(" ");
    return words ? `, in ${words}` : "";
  };

  const example = (n, value, both, power, k) => {
    const item = make("li", both ? "shared" : "");
    const at = slot.get(n);
    const target = data.trainTargets && data.trainTargets[at];
    const label = named(target);
    if (data.image) item.append(tile("train", at, `Training example ${n}${label ? ", labelled " + label : ""}`));
    const what = make("span", "what");
    what.append(make("span", "value", fixed(value / 10 ** power)));
    if (label) what.append(" ", make("span", "small", `label ${label}`));
    what.append(" ", make("span", "small", `no. ${n}`));
    if (both) what.append(" ", make("span", "small both", "in both"));
    const truth = wrong.get(String(n));
    if (truth !== undefined)
      what.append(" ", make("span", "small wrong", truth === null ? "wrong label" : `truly ${named(truth)}`));
    item.append(what);
    item.dataset.example = n;
    if (data.features) {
      item.append(strip(data.features.train[at]));
      const details = make("details");
      details.append(make("summary", "", "Features"),
        featureTable([["example", data.features.train[at]], ["query", data.features.queries[k]]]));
      item.append(details);
    }
    return item;
  };

  const showRung = (where, rung, other, k, power) => {
    const box = $(`answer-${where}`);
    box.style.setProperty("--chip", `var(${rung.colour})`);
    box.setAttribute("aria-label", `${rung.label}`);
    box.replaceChildren(make("h3", "", rung.label));
    const lds = rung.lds[k];
    const trust = lds === null ? "no rank correlation on this query" : `rank correlation with the truth on this query ${lds.toFixed(2).replace("-", "−")}`;
    box.append(make("p", "note", `${trust}${rung.units ? "" : "; values without units"}`));
    ["Most helpful", "Most harmful"].forEach((title, end) => {
      const list = make("ol", "examples" + (data.features || !data.image ? " rows" : ""));
      list.setAttribute("aria-label", `${title} by ${rung.label}`);
      const shared = new Set(other.examples[k][end]);
      rung.examples[k][end].forEach((n, i) =>
        list.append(example(n, rung.values[k][end][i], rung !== other && shared.has(n), power, k)));
      box.append(make("h4", "", title + unitOf(rung, power)), list);
    });
  };

  const summary = (k, a, b) => {
    const said = believed(k);
    const label = named(targetOf(k));
    let text = `Query ${data.queries[k]}`;
    if (label) text += `, labelled ${label}`;
    if (said !== null) text += said === targetOf(k) ? ", which the model gets right" : `, which the model takes for ${named(said)}`;
    if (a === b) return `${text}. Pick two different rungs to see where they agree.`;
    const common = [0, 1].map((end) => a.examples[k][end].filter((n) => b.examples[k][end].includes(n)).length);
    const of = a.examples[k][0].length;
    const found = data.agreement[`${a.name}|${b.name}`] || data.agreement[`${b.name}|${a.name}`];
    const rho = found && found[k];
    text += `. ${a.label} and ${b.label} share ${common[0]} of the ${of} most helpful and ${common[1]} of the ${of} most harmful examples`;
    if (rho !== undefined && rho !== null) text += `; over all training examples their ranks correlate at ${rho.toFixed(2).replace("-", "−")}`;
    return text + ".";
  };

  const show = () => {
    const k = Number($("query").value);
    const [a, b] = pickers.map((picker) => data.rungs[Number(picker.value)]);
    showQuery(k);
    const alike = a.units === b.units;
    showRung(0, a, b, k, powerOf(alike ? [a, b] : [a], k));
    showRung(1, b, a, k, powerOf(alike ? [a, b] : [b], k));
    $("status").textContent = summary(k, a, b);
    const options = $("query").options;
    $("previous").disabled = $("query").selectedIndex === 0;
    $("next").disabled = $("query").selectedIndex === options.length - 1;
  };

  const groups = { "The model is wrong": [], "The model is right": [], "": [] };
  data.queries.forEach((q, k) => {
    const said = believed(k);
    const label = named(targetOf(k));
    const right = said === targetOf(k);
    const text = `${q}${label ? ": " + label : ""}${said !== null && !right ? `, taken for ${named(said)}` : ""}`;
    groups[said === null ? "" : right ? "The model is right" : "The model is wrong"].push(option(k, text));
  });
  for (const [name, options] of Object.entries(groups)) {
    if (!options.length) continue;
    if (!name) { $("query").append(...options); continue; }
    const group = make("optgroup");
    group.label = name;
    group.append(...options);
    $("query").append(group);
  }
  pickers.forEach((picker, i) => {
    data.rungs.forEach((rung, k) => picker.append(option(k, rung.label)));
    picker.value = data.rungs.findIndex((rung) => rung.name === data.first[i]);
    picker.addEventListener("change", show);
  });
  const move = (step) => {
    $("query").selectedIndex += step;
    show();
  };
  $("previous").addEventListener("click", () => move(-1));
  $("next").addEventListener("click", () => move(1));
  $("query").addEventListener("change", show);
  $("controls").addEventListener("submit", (event) => event.preventDefault());
  $("query").selectedIndex = 0;
  $("controls").hidden = false;
  $("bench").hidden = false;
  show();
})();
