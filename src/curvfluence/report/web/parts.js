"use strict";
// What every script of a page uses: elements, numbers as a reader sees them, the copy button.
const parts = (() => {
  const copy = document.getElementById("copy");
  if (copy && navigator.clipboard) {
    copy.hidden = false;
    copy.addEventListener("click", async () => {
      await navigator.clipboard.writeText(document.getElementById("command").textContent);
      copy.textContent = "Copied";
    });
  }

  const make = (tag, name = "", text = "") => {
    const element = document.createElement(tag);
    if (name) element.className = name;
    if (text !== "") element.textContent = text;
    return element;
  };

  const raised = (power) => [...String(power)].map((c) => "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"["-0123456789".indexOf(c)]).join("");

  // Three digits, whole numbers whole, a true minus sign: as study/words.py has it in Python.
  const shown = (value, signed = false) => {
    const size = Math.abs(value);
    const text = size !== 0 && (size < 1e-3 || size >= 1e5)
      ? size.toExponential(2).replace(/\.?0*e/, "·10^").replace("^+", "^").replace(/^1·/, "")
      : size >= 100 ? size.toFixed(0) : String(Number(size.toPrecision(3)));
    const sign = value < 0 ? "−" : signed && value > 0 ? "+" : "";
    return sign + text.replace(/\^(-?\d+)/, (_, power) => raised(power));
  };

  const fixed = (value) => {
    const size = Math.abs(value);
    const text = size.toFixed(size < 9.995 ? 2 : size < 99.95 ? 1 : 0);
    return (value < 0 ? "−" : value > 0 ? "+" : "") + text;
  };

  const option = (value, text) => {
    const element = make("option", "", text);
    element.value = value;
    return element;
  };

  // A bar of a share of its length, from the left; `signed` ones from a zero in the middle.
  const bar = (share, signed = false) => {
    const element = make("span", signed ? "bar signed" : "bar");
    const part = make("i");
    const length = Math.min(1, Math.abs(share)) * (signed ? 50 : 100);
    part.style.left = signed ? `${share < 0 ? 50 - length : 50}%` : "0";
    part.style.width = `${length}%`;
    element.append(part);
    return element;
  };

  const clipped = (text, length = 20) => (text.length <= length ? text : `${text.slice(0, length - 1).trimEnd()}…`);

  return { make, bar, shown, fixed, raised, option, clipped };
})();
