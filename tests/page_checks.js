/* Checks of a page that only a browser can make. Each returns what is wrong, in words; nothing wrong is an empty list. */
const rgba = (colour) => {
  const [red, green, blue, alpha = 1] = colour.match(/[\d.]+/g).map(Number);
  return [red, green, blue, alpha];
};
const over = (front, back) => [0, 1, 2].map((i) => front[i] * front[3] + back[i] * (1 - front[3])).concat(1);
const luminance = (colour) => {
  const linear = colour.slice(0, 3).map((value) => {
    const part = value / 255;
    return part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4;
  });
  return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2];
};
const isShown = (element) => element.checkVisibility({ opacityProperty: true, visibilityProperty: true });

function background(element) {
  const layers = [];
  for (let node = element; node; node = node.parentElement) {
    const colour = rgba(getComputedStyle(node).backgroundColor);
    if (colour[3] > 0) layers.push(colour);
    if (colour[3] === 1) break;
  }
  return layers.reverse().reduce((below, layer) => over(layer, below), [255, 255, 255, 1]);
}

/* WCAG 2.1: 4.5 to 1 for text, 3 to 1 for large text. */
function contrast() {
  const found = new Map();
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  let texts = 0;
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || element.closest("script, style, svg, mjx-assistive-mml")) continue;
    if (!isShown(element)) continue;
    texts += 1;
    const style = getComputedStyle(element);
    const behind = background(element);
    const [dark, light] = [luminance(over(rgba(style.color), behind)), luminance(behind)].sort((a, b) => a - b);
    const ratio = (light + 0.05) / (dark + 0.05);
    const size = parseFloat(style.fontSize);
    const isLarge = size >= 24 || (size >= 18.66 && style.fontWeight >= 700);
    if (ratio < (isLarge ? 3 : 4.5)) {
      found.set(`${element.className} ${style.color}: ${ratio.toFixed(2)}`, walker.currentNode.data.trim().slice(0, 40));
    }
  }
  return texts ? [...found].map(([what, text]) => `${what}, as in "${text}"`) : ["no text was found"];
}

function headings() {
  const shown = [...document.querySelectorAll("main h1, main h2, main h3, main h4, main h5, main h6")].filter(isShown);
  const levels = shown.map((heading) => Number(heading.tagName[1]));
  const wrong = shown.filter((_, i) => i && levels[i] - levels[i - 1] > 1).map((h) => `skips a level: ${h.innerText}`);
  if (levels[0] !== 1 || levels.filter((level) => level === 1).length !== 1) wrong.push("not one h1 at the head");
  return wrong;
}

function names() {
  const controls = [...document.querySelectorAll("a[href], button, summary, input:not([type=hidden])")].filter((e) =>
    e.checkVisibility()
  );
  const named = (e) =>
    e.ariaLabel || e.innerText.trim() || e.title || e.placeholder || e.labels?.length || e.querySelector("img[alt]");
  return controls.filter((e) => !named(e)).map((e) => `no name: ${e.outerHTML.slice(0, 100)}`);
}

function structure() {
  const wrong = [];
  if (!document.documentElement.lang) wrong.push("no language");
  if (document.querySelectorAll("main").length !== 1) wrong.push("not one main landmark");
  for (const table of document.querySelectorAll("article table")) {
    if (!table.querySelector("th")) wrong.push(`a table without header cells: ${table.innerText.slice(0, 40)}`);
  }
  for (const image of document.querySelectorAll("article img")) {
    if (!image.naturalWidth) wrong.push(`not shown: ${image.src}`);
  }
  for (const error of document.querySelectorAll("mjx-merror")) wrong.push(`mathematics: ${error.textContent}`);
  return wrong;
}

/* Nothing makes the page wider than the window, and what scrolls in a box of its own is reached with Tab. */
function width() {
  const wrong = [];
  const page = document.documentElement.scrollWidth;
  if (page > innerWidth + 1) wrong.push(`the page is ${page} wide, the window ${innerWidth}`);
  for (const box of document.querySelectorAll("article *")) {
    if (box.scrollWidth <= box.clientWidth + 1 || !box.clientWidth || box.tabIndex >= 0 || !isShown(box)) continue;
    if (/auto|scroll/.test(getComputedStyle(box).overflowX)) {
      wrong.push(`scrolls, but not by keyboard: ${box.tagName} ${box.className}`);
    }
  }
  return [...new Set(wrong)];
}

function solutions() {
  return [...document.querySelectorAll(".solution.admonition")].flatMap((box) => {
    const button = box.querySelector("button.toggle-button");
    const content = box.querySelector(".admonition-title ~ *");
    const wrong = [];
    if (isShown(content)) wrong.push(`not closed: ${box.id}`);
    if (button?.tabIndex !== 0 || button.getAttribute("aria-expanded") !== "false") wrong.push(`no keys: ${box.id}`);
    if (!/Exercise \d+\.\d+/.test(button?.ariaLabel)) wrong.push(`whose solution? ${box.id}`);
    return wrong;
  });
}
