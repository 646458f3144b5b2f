"use strict";
// Keeps the page up to date: asks for the run's state, and for the page again once something in it has changed.
(() => {
  const words = document.getElementById("words");
  const link = document.getElementById("link");
  const sources = new Map([...document.querySelector("main").children].map((part) => [part.id, part.innerHTML]));
  let stamp = document.body.dataset.stamp;
  let period = 2000;

  // Parts that have not changed stay as they are, with everything that the reader has opened or hidden in them.
  const merge = (page) => {
    const main = document.querySelector("main");
    const focused = document.activeElement?.closest?.("main > *")?.id;
    const old = new Map([...main.children].map((part) => [part.id, part]));
    const parts = [...page.querySelectorAll("main > *")].map((part) => {
      const source = part.innerHTML;
      const before = old.get(part.id);
      if (before && source === sources.get(part.id)) return before;
      sources.set(part.id, source);
      return part;
    });
    main.replaceChildren(...parts);
    if (focused && !main.contains(document.activeElement)) {
      document.getElementById(focused)?.querySelector("[tabindex], summary")?.focus({ preventScroll: true });
    }
  };

  const ask = async () => {
    try {
      const answer = await fetch("/data.json", { cache: "no-store" });
      if (!answer.ok) throw new Error(answer.statusText);
      const data = await answer.json();
      words.textContent = data.words;
      document.title = data.title;
      const status = words.closest(".status");
      status.className = `status ${data.state}`;
      status.firstElementChild.textContent = data.state[0].toUpperCase() + data.state.slice(1);
      if (stamp !== data.stamp) {
        const page = await fetch("/", { cache: "no-store" });
        if (!page.ok) throw new Error(page.statusText);
        merge(new DOMParser().parseFromString(await page.text(), "text/html"));
        stamp = data.stamp;
      }
      link.textContent = "This page keeps itself up to date.";
      link.classList.remove("lost");
      period = data.state === "running" ? 2000 : 5000;
    } catch {
      link.textContent = "The server does not answer; this is the last state that it sent.";
      link.classList.add("lost");
      period = 5000;
    }
    setTimeout(ask, period);
  };

  setTimeout(ask, period);
})();
