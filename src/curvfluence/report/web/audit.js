"use strict";
(() => {
  const { make, shown, option, clipped } = parts;
  const source = document.getElementById("audit-data");
  if (!source) return;
  const data = JSON.parse(source.textContent);
  const { draw, named, labelled } = cards(data);
  const $ = (id) => document.getElementById(id);
  const slot = new Map(data.examples.map((n, k) => [n, k]));
  const wrong = new Map(Object.entries(data.wrong));
  const STEP = 30;
  const marked = new Set();
  let count = STEP;

  const labelOf = (n) => data.labels[slot.get(n)];

  const near = (n) => {
    const row = data.near[n];
    if (!row) return [make("p", "note", "Its neighbours were not looked for.")];
    const pictures = row.length && row.every(([m]) => data.cards[slot.get(m)].image);
    const list = make("ol", pictures ? "near pictures" : "near");
    list.setAttribute("aria-label", `Neighbours of ${n}`);
    for (const [m, cosine] of row) {
      const item = make("li", cosine < 0 ? "against" : "");
      const label = named(labelOf(m));
      const [before] = draw(data.cards[slot.get(m)], `Training example ${m}${label ? ", " + label : ""}`);
      const picture = before.filter((element) => element.tagName === "IMG");
      item.append(...picture, make("span", "small", `${cosine < 0 ? "↓" : "↑"} no. ${m}${label ? `: ${label}` : ""}`));
      item.title = `no. ${m}, cosine ${shown(cosine)}`;
      list.append(item);
    }
    return [list];
  };

  const suspect = (n, place) => {
    const item = make("li", marked.has(n) ? "marked" : "");
    item.id = `example-${n}`;
    item.dataset.example = n;
    const label = labelled(labelOf(n));
    const [before, after] = draw(data.cards[slot.get(n)], `Training example ${n}${label ? ", " + label : ""}`);
    const box = make("label", "tick");
    const tick = make("input");
    tick.type = "checkbox";
    tick.checked = marked.has(n);
    tick.addEventListener("change", () => {
      if (tick.checked) marked.add(n); else marked.delete(n);
      item.classList.toggle("marked", tick.checked);
      said();
    });
    box.append(tick, ` ${place}. no. ${n}`);
    const words = make("div", "words-of");
    if (label) words.append(make("p", "label", label));
    if (data.said[n] !== undefined) {
      const chance = data.chance[n];
      words.append(make("p", "small", `model: ${named(data.said[n])}` + (chance === undefined || chance === null ? "" : `; gives its label ${(100 * chance).toFixed(1)}%`)));
    }
    if (data.suggested[n] !== undefined) words.append(make("p", "small", `neighbours against it: ${named(data.suggested[n])}`));
    const truth = wrong.get(String(n));
    if (truth !== undefined) words.append(make("p", "small wrong", truth === null ? "known to be wrong" : `truly ${named(truth)}`));
    const values = make("details");
    const table = make("table", "features");
    const body = table.createTBody();
    for (const one of data.criteria) {
      const row = body.insertRow();
      const th = make("th", "", one.title);
      th.scope = "row";
      row.append(th);
      const value = data.values[n][one.name];
      const cell = row.insertCell();
      const place = `place ${data.places[one.name][n].toLocaleString("en")}`;
      cell.append(value === null ? "–" : shown(value), make("span", "small", place));
    }
    values.append(make("summary", "", "Criteria"), table);
    const body2 = make("div", "about");
    body2.append(...before, words);
    item.append(box, body2, ...after, ...near(n), values);
    return item;
  };

  const rows = () => {
    const only = $("labelled") ? $("labelled").value : "";
    const which = $("only").value;
    return data.lists[$("by").value]
      .map((n, i) => [n, i + 1])
      .filter(([n]) => only === "" || String(labelOf(n)) === only)
      .filter(([n]) => which === "" || (which === "marked") === marked.has(n));
  };

  const said = () => {
    $("marked").textContent = `${marked.size} marked`;
    for (const id of ["export-json", "export-csv", "export-copy", "clear"]) $(id).disabled = !marked.size;
  };

  const show = () => {
    const every = rows();
    const some = every.slice(0, count);
    $("list").replaceChildren(...some.map(([n, place]) => suspect(n, place)));
    $("more").hidden = every.length <= count;
    const one = data.criteria.find((criterion) => criterion.name === $("by").value);
    $("status").textContent = every.length
      ? `${some.length} of ${every.length} by ${one.title.toLowerCase()}: ${one.meaning}.`
      : "Nothing of this kind among those listed.";
    said();
    const place = new URLSearchParams({ by: one.name });
    if ($("labelled") && $("labelled").value !== "") place.set("labelled", $("labelled").value);
    history.replaceState(null, "", `#${place}`);
  };

  const follow = () => {
    const place = new URLSearchParams(location.hash.slice(1));
    if (data.lists[place.get("by")]) $("by").value = place.get("by");
    if ($("labelled") && place.get("labelled") !== null) $("labelled").value = place.get("labelled");
    if ($("labelled") && $("labelled").selectedIndex < 0) $("labelled").value = "";
  };

  const numbers = () => [...marked].sort((a, b) => a - b);
  const save = (name, text, type) => {
    const link = make("a");
    link.href = URL.createObjectURL(new Blob([text], { type }));
    link.download = name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  };
  $("export-json").addEventListener("click", () => save("marked.json", JSON.stringify({ examples: numbers() }) + "\n", "application/json"));
  $("export-csv").addEventListener("click", () => save("marked.csv", ["example,label,suggested", ...numbers().map((n) => [n, labelOf(n) ?? "", data.suggested[n] ?? ""].join(","))].join("\n") + "\n", "text/csv"));
  $("export-copy").addEventListener("click", async () => {
    await navigator.clipboard.writeText(numbers().join(", "));
    $("export-copy").textContent = "Copied";
  });
  if (!navigator.clipboard) $("export-copy").hidden = true;
  $("clear").addEventListener("click", () => { marked.clear(); show(); });

  const groups = $("groups");
  if (groups) for (const group of data.duplicates) {
    const item = make("li", group.conflicting ? "against" : "");
    item.append(make("p", "label", group.conflicting ? "different targets" : "the same target"));
    const list = make("ol", group.examples.every((n) => data.cards[slot.get(n)].image) ? "near pictures" : "near");
    for (const n of group.examples) {
      const [before] = draw(data.cards[slot.get(n)], `Training example ${n}`);
      const one = make("li");
      one.append(...before.filter((element) => element.tagName === "IMG"), make("span", "small", `no. ${n}${named(labelOf(n)) ? ": " + named(labelOf(n)) : ""}`));
      list.append(one);
    }
    item.append(list);
    if (group.more) item.append(make("p", "small", `and ${group.more} more`));
    groups.append(item);
  }

  data.criteria.forEach((one) => $("by").append(option(one.name, one.title)));
  $("by").value = data.order;
  if ($("labelled")) {
    $("labelled").append(option("", "any"));
    data.classes.forEach((name, c) => $("labelled").append(option(c, clipped(name))));
  }
  follow();
  for (const id of ["by", "labelled", "only"]) if ($(id)) $(id).addEventListener("change", () => { count = STEP; show(); });
  $("more").addEventListener("click", () => { count += STEP; show(); });
  window.addEventListener("hashchange", () => { if (location.hash.includes("by=")) { follow(); show(); } });
  $("controls").addEventListener("submit", (event) => event.preventDefault());
  $("controls").hidden = false;
  $("marks").hidden = false;
  show();
})();
