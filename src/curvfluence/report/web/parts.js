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

  // Numbers with a true minus sign and the digits they were given.
  const shown = (value, signed = false) => {
    const size = Math.abs(value);
    const text = size !== 0 && (size < 1e-3 || size >= 1e5)
      ? size.toExponential(1).replace("e", "·10^").replace("^+", "^")
      : String(Number(size.toPrecision(3)));
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

  return { make, shown, fixed, raised, option };
})();
