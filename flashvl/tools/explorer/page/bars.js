// Chances on a logarithmic scale.

import { element, fill, percent, visible } from "./dom.js";

const LEAST = 1e-5; // the left end of the scale

/** `rows`: [{text, chance, chosen, off}]; the bars' scale is the same wherever they are shown. */
export function showBars(root, rows) {
  fill(
    root,
    ...rows.map(({ text, chance, chosen, off }) => {
      const length = chance > 0 ? Math.max(0, 1 - Math.log10(chance) / Math.log10(LEAST)) : 0;
      return element(
        "li",
        { class: [chosen ? "chosen" : "", off ? "off" : ""].join(" ").trim() || null },
        element("span", { class: "name", text: visible(text) }),
        element(
          "span",
          { class: "track", "aria-hidden": "true" },
          element("span", { style: { width: `${length * 100}%` } }),
        ),
        element("span", { class: "value", text: chance > 0 ? exact(chance) : "0" }),
      );
    }),
  );
}

/** What is too rare for percent, in powers of ten. */
function exact(chance) {
  if (chance >= 0.001) return percent(chance);
  const [digit, power] = chance.toExponential(0).split("e-");
  return `${digit} · 10⁻${Array.from(power, (one) => "⁰¹²³⁴⁵⁶⁷⁸⁹"[one]).join("")}`;
}
