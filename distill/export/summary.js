"use strict";
// Sorts the wall, and hides the states that are not asked for.
const wall = document.getElementById("wall");
const cards = [...wall.children];
const number = (card, name) => (card.dataset[name] === "" ? NaN : Number(card.dataset[name]));
// What is not known comes last, in either direction.
const byNumber = (name, sign) => (a, b) => {
  const x = number(a, name), y = number(b, name);
  return Number.isNaN(x) - Number.isNaN(y) || sign * (x - y) || a.dataset.index - b.dataset.index;
};
const orders = {
  failures: (a, b) => a.dataset.index - b.dataset.index,
  prompt: (a, b) => a.dataset.prompt.localeCompare(b.dataset.prompt) || a.dataset.index - b.dataset.index,
  worst: byNumber("score", 1),
  best: byNumber("score", -1),
  slowest: byNumber("seconds", -1),
};
for (const button of document.querySelectorAll("[data-order]")) {
  button.addEventListener("click", () => {
    wall.append(...cards.sort(orders[button.dataset.order]));
    for (const other of document.querySelectorAll("[data-order]")) other.setAttribute("aria-pressed", other === button);
  });
}
document.getElementById("find").addEventListener("input", (event) => {
  const wanted = event.target.value.toLowerCase();
  for (const card of cards) card.hidden = !card.textContent.toLowerCase().includes(wanted);
});
