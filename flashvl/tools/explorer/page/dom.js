// Elements of the page. Texts go in as texts, never as HTML.

const SVG = "http://www.w3.org/2000/svg";

/**
 * An element with attributes, of which `text` is its text, `style` an object of CSS properties and
 * `onclick` and the like are listeners; false and null leave an attribute out.
 */
export function element(tag, attributes = {}, ...children) {
  const svg = ["svg", "path", "circle", "polygon", "rect"].includes(tag);
  const made = svg ? document.createElementNS(SVG, tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === false) continue;
    if (name === "text") made.textContent = value;
    else if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (name === "style") {
      for (const [property, one] of Object.entries(value)) made.style.setProperty(property, one);
    } else made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.filter((child) => child !== null));
  return made;
}

export function byId(id) {
  return document.getElementById(id);
}

/** Replaces what an element holds; the focus stays on the button of the same place. */
export function fill(parent, ...children) {
  const buttons = () => Array.from(parent.querySelectorAll("button, [tabindex]"));
  const focused = buttons().indexOf(document.activeElement);
  parent.replaceChildren(...children.filter((child) => child !== null));
  if (focused >= 0) buttons()[focused]?.focus();
}

/** Buttons of which one is chosen. `choices` is a list of [value, text]. */
export function choose(parent, label, choices, chosen, changed) {
  parent.setAttribute("aria-label", label);
  const buttons = choices.map(([value, text]) =>
    element("button", {
      type: "button",
      role: "radio",
      "aria-checked": String(value === chosen),
      text,
      onclick: () => changed(value),
    }),
  );
  fill(parent, ...buttons);
}

export function css(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

/** "#rrggbb" -> [red, green, blue]. */
export function rgbOf(color) {
  return [1, 3, 5].map((start) => parseInt(color.slice(start, start + 2), 16));
}

export function percent(share) {
  if (share >= 0.0995) return `${Math.round(share * 100)} %`;
  return share >= 0.001 ? `${(share * 100).toFixed(1)} %` : "< 0.1 %";
}

/** A token's text with its spaces and line breaks to be seen. */
export function visible(text) {
  return text.replace(/ /g, "·").replace(/\n/g, "↵");
}

/**
 * One tab stop for many elements: the arrow keys go from one to the next.
 *
 * `columns` of them stand in a row; `press` is called for the space bar and the enter key.
 */
export function roving(parent, elements, columns, press) {
  let current = 0;
  const go = (index) => {
    if (index < 0 || index >= elements.length) return;
    elements[current].tabIndex = -1;
    current = index;
    elements[current].tabIndex = 0;
    elements[current].focus();
  };
  elements.forEach((one, index) => {
    one.tabIndex = index === 0 ? 0 : -1;
  });
  parent.onkeydown = (event) => {
    const index = elements.indexOf(event.target);
    if (index < 0) return;
    const steps = {
      ArrowLeft: -1,
      ArrowRight: 1,
      ArrowUp: -columns,
      ArrowDown: columns,
      Home: -index,
      End: elements.length - 1 - index,
    };
    if (event.key in steps) {
      if (elements[current] !== event.target) {
        elements[current].tabIndex = -1;
        current = index;
      }
      go(index + steps[event.key]);
    } else if (press !== undefined && (event.key === " " || event.key === "Enter")) {
      press(index);
    } else return;
    event.preventDefault();
    event.stopPropagation();
  };
}
