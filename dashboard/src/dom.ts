// Elements from words, and one tree turned into another in place: what has the focus, is open or is being
// read keeps its element. Text goes in as text, so nothing that a gateway says becomes markup.

const SVG = "http://www.w3.org/2000/svg";
const SVG_TAGS = new Set(["svg", "path", "line", "circle", "rect", "g", "title"]);

type Attributes = Record<string, string | number | boolean | null | undefined>;
export type Child = Node | string | null | undefined | false | Child[];

/** `h("p.soft#id", {title}, "text")`. */
export function h(what: string, attributes: Attributes = {}, ...children: Child[]): HTMLElement {
  const [, tag = "div", rest = ""] = /^([\w-]+)(.*)$/.exec(what) ?? [];
  const svg = SVG_TAGS.has(tag);
  const element = svg ? document.createElementNS(SVG, tag) : document.createElement(tag);
  const classes = [...rest.matchAll(/\.([\w-]+)/g)].map((match) => match[1]);
  if (classes.length) element.setAttribute("class", classes.join(" "));
  const id = /#([\w-]+)/.exec(rest)?.[1];
  if (id) element.id = id;
  for (const [name, value] of Object.entries(attributes)) {
    if (value === false || value == null) continue;
    element.setAttribute(name, value === true ? "" : String(value));
  }
  element.append(...flat(children));
  return element as HTMLElement;
}

function flat(children: Child[]): (Node | string)[] {
  return children.flatMap((child) =>
    Array.isArray(child) ? flat(child) : child === false || child == null ? [] : [child],
  );
}

/** Makes the children of `parent` these. An element with `data-keep` is left to whoever draws in it. */
export function show(parent: Element, ...children: Child[]): void {
  morphChildren(
    parent,
    flat(children).map((one) => (typeof one === "string" ? document.createTextNode(one) : one)),
  );
}

const key = (node: Node) => (node instanceof Element ? node.getAttribute("data-key") : null);

function alike(a: Node, b: Node): boolean {
  return a.nodeName === b.nodeName && key(a) === key(b);
}

function morphChildren(parent: Element, wanted: Node[]): void {
  const keyed = new Map<string, Node>();
  for (const child of parent.childNodes) {
    const its = key(child);
    if (its !== null) keyed.set(its, child);
  }
  let here = parent.firstChild;
  for (const want of wanted) {
    const its = key(want);
    const known = its === null ? here : (keyed.get(its) ?? here);
    if (known && alike(known, want)) {
      if (known !== here) parent.insertBefore(known, here);
      else here = here.nextSibling;
      morph(known, want);
    } else parent.insertBefore(want, here);
  }
  while (here) {
    const gone = here;
    here = here.nextSibling;
    gone.remove();
  }
}

function morph(known: Node, want: Node): void {
  if (!(known instanceof Element) || !(want instanceof Element)) {
    if (known.nodeValue !== want.nodeValue) known.nodeValue = want.nodeValue;
    return;
  }
  for (const { name } of [...known.attributes]) {
    // Whether something is unfolded is up to whoever reads it.
    if (!want.hasAttribute(name) && name !== "open") known.removeAttribute(name);
  }
  for (const { name, value } of want.attributes) {
    if (known.getAttribute(name) !== value) known.setAttribute(name, value);
  }
  if (!want.hasAttribute("data-keep")) morphChildren(known, [...want.childNodes]);
}
