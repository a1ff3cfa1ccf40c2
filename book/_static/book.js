/* What the theme and its extensions leave out for readers with a keyboard or a screen reader. */

/* A box that scrolls sideways can be reached with Tab; the theme sees to code and tables only. */
function reachScrollingBoxes() {
  for (const box of document.querySelectorAll("article div.math, article div.ledger")) {
    if (box.scrollWidth > box.clientWidth + 1) box.tabIndex = 0;
    else box.removeAttribute("tabindex");
  }
}

function nameSolutions() {
  let exercise = "the exercise";
  for (const box of document.querySelectorAll("div.exercise, div.solution")) {
    const number = box.querySelector(".admonition-title .caption-number");
    const button = box.querySelector(".toggle-button");
    if (number) exercise = number.textContent.trim();
    if (!button) continue;
    button.setAttribute("aria-label", `Solution of ${exercise}`);
    button.setAttribute("aria-controls", box.id);
    button.addEventListener("click", () => window.dispatchEvent(new Event("resize")));
  }
}

function nameButtons() {
  for (const button of document.querySelectorAll("button.copybtn")) {
    button.setAttribute("aria-label", "Copy this code");
  }
  for (const summary of document.querySelectorAll("nav summary")) {
    const page = summary.closest("li")?.querySelector("a");
    if (page) summary.setAttribute("aria-label", `Pages under ${page.textContent.trim()}`);
  }
}

window.addEventListener("load", () => {
  nameSolutions();
  nameButtons();
  reachScrollingBoxes();
  window.MathJax?.startup?.promise?.then(reachScrollingBoxes);
  for (const fold of document.querySelectorAll("article details")) {
    fold.addEventListener("toggle", () => window.dispatchEvent(new Event("resize")));
  }
});
window.addEventListener("resize", reachScrollingBoxes);
