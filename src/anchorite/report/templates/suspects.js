"use strict";
// Filters the cards by kind, split and class, and walks through those left, with buttons or keys.
(() => {
  const cards = [...document.querySelectorAll(".card")];
  if (!cards.length) return;
  const kinds = [...document.querySelectorAll(".kinds button")];
  const [split, category, place, meaning, none] = ["split", "class", "place", "meaning", "none"].map(
    (id) => document.getElementById(id));
  let kind = "";
  let shown = cards;
  let current = -1;

  function tell() {
    place.textContent = current < 0 ? `${shown.length} shown` : `${current + 1} of ${shown.length}`;
  }

  function filter() {
    for (const card of cards) {
      card.hidden = !((!kind || card.dataset.kind === kind)
        && (!split.value || card.dataset.split === split.value)
        && (!category.value || card.dataset.classes.split(" ").includes(category.value)));
    }
    shown = cards.filter((card) => !card.hidden);
    none.hidden = shown.length > 0;
    current = -1;
    tell();
  }

  function step(by) {
    if (!shown.length) return;
    current = current < 0 ? (by > 0 ? 0 : shown.length - 1) : Math.min(Math.max(current + by, 0), shown.length - 1);
    shown[current].focus({ preventScroll: true });
    shown[current].scrollIntoView({ block: "nearest" });
    tell();
  }

  for (const button of kinds) {
    button.addEventListener("click", () => {
      kind = button.dataset.kind;
      for (const other of kinds) other.setAttribute("aria-pressed", String(other === button));
      meaning.textContent = button.title;
      filter();
    });
  }
  split.addEventListener("change", filter);
  category.addEventListener("change", filter);
  document.getElementById("previous").addEventListener("click", () => step(-1));
  document.getElementById("next").addEventListener("click", () => step(1));
  for (const [number, card] of cards.entries()) {
    card.addEventListener("click", () => {
      current = shown.indexOf(cards[number]);
      card.focus({ preventScroll: true });
      tell();
    });
  }
  const keys = { ArrowRight: 1, j: 1, ArrowLeft: -1, k: -1 };
  document.addEventListener("keydown", (event) => {
    const by = keys[event.key];
    if (!by || event.ctrlKey || event.metaKey || event.altKey || event.target.tagName === "SELECT") return;
    event.preventDefault();
    step(by);
  });
  tell();
})();
