"use strict";
// Examples as a person sees them: pictures, words, texts, rows of features.
const cards = (data) => {
  const { make, shown } = parts;

  const named = (target) => {
    if (target === undefined || target === null) return "";
    if (Array.isArray(target))
      return target.map((v) => (typeof v === "number" ? shown(v) : v)).join(", ") + (data.targetUnit ? ` ${data.targetUnit}` : "");
    return data.classes ? String(data.classes[target] ?? target) : String(target);
  };
  const labelled = (target) => (named(target) ? `${typeof target === "number" ? "label" : "target"} ${named(target)}` : "");

  const text = (value) => (typeof value === "number" ? shown(value) : value ?? "");

  const picture = (card, alt) => {
    const image = make("img", "picture");
    image.src = card.image;
    image.alt = alt;
    image.width = card.width;
    image.height = card.height;
    image.style.aspectRatio = `${card.width} / ${card.height}`;
    return image;
  };

  // Blue below the mean of the training examples shown, orange above. Whole numbers, which may be
  // codes without an order, and words have no mean: they are written out.
  const SPELT = 8;
  const strip = (row) => {
    const element = make("span", "strip");
    element.setAttribute("aria-hidden", "true");
    const spelt = [];
    for (const [name, value] of row) {
      const scale = data.scales[name];
      if (!scale) { spelt.push(`${name}=${text(value)}`); continue; }
      if (typeof value !== "number") continue;
      const z = scale[1] > 0 ? Math.max(-2, Math.min(2, (value - scale[0]) / scale[1])) : 0;
      const cell = make("i");
      cell.style.background = `color-mix(in srgb, var(${z < 0 ? "--c0072b2" : "--ce69f00"}) ${Math.abs(z) * 45 + 5}%, var(--raised))`;
      cell.title = `${name}: ${shown(value)}`;
      element.append(cell);
    }
    const rest = spelt.length > SPELT ? ", …" : "";
    const words = spelt.length ? [make("span", "spelt", spelt.slice(0, SPELT).join(", ") + rest)] : [];
    return element.children.length ? [element, ...words] : words;
  };

  const rows = (card, other) => {
    const details = make("details");
    const table = make("table", "features");
    const head = table.createTHead().insertRow();
    for (const name of ["feature", "value", ...(other ? ["query"] : [])]) {
      const th = make("th", "", name);
      th.scope = "col";
      head.append(th);
    }
    const beside = new Map(other || []);
    const body = table.createTBody();
    for (const [name, value] of card.row) {
      const line = body.insertRow();
      const th = make("th", "", name);
      th.scope = "row";
      line.append(th);
      line.insertCell().textContent = text(value);
      if (other) line.insertCell().textContent = text(beside.get(name));
    }
    details.append(make("summary", "", "Features"), table);
    return details;
  };

  // Words, coloured by shares of help: green helps, orange harms.
  const words = (card, shares, shift) => {
    const box = make("p", "words");
    card.words.forEach((word, t) => {
      const share = shares ? shares[t - shift] : undefined;
      const token = make("span", "token", word);
      if (share !== undefined && Math.abs(share) >= 0.01) {
        token.style.background = `color-mix(in srgb, var(${share > 0 ? "--c009e73" : "--ce69f00"}) ${Math.round(Math.abs(share) * 65)}%, transparent)`;
        token.title = `${share > 0 ? "helps" : "harms"}: ${shown(share, true)} of the largest`;
      }
      box.append(token, " ");
    });
    if (card.more) box.append(make("span", "small", `and ${card.more} more tokens`));
    return box;
  };

  // What stands in the place of an example: [elements before its words, elements after].
  const draw = (card, alt, { shares = null, shift = 0, other = null } = {}) => {
    if (card.image) return [[picture(card, alt)], []];
    if (card.words) return [[], [words(card, shares, shift)]];
    if (card.text !== undefined) return [[], [make("p", "words", card.text)]];
    return [[], [...strip(card.row), rows(card, other && other.row)]];
  };

  return { draw, named, labelled };
};
