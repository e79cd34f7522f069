"use strict";
// The tabs of the page; the address keeps which one is shown, and its state.

const TABS = [
  ["start", "Start", startTab],
  ["watch", "Watch", watchTab],
  ["draw", "Draw", drawTab],
  ["picture", "Your picture", ownPictureTab],
  ["latents", "Latents", latentsTab],
  ["quality", "How good", qualityTab],
];

// Go to a tab with a state.
function go(values) {
  history.pushState(null, "", `#${new URLSearchParams(values)}`);
  showAddressed();
}

function showAddressed() {
  turnPage();
  const wanted = kept("tab", "start"), [id, , show] = TABS.find(([each]) => each === wanted) ?? TABS[0];
  for (const button of document.querySelectorAll("#tabs button")) button.setAttribute("aria-pressed", String(button.dataset.tab === id));
  main.replaceChildren();
  say("");
  counted(show(main)).then(() => document.getElementById(kept("part", ""))?.scrollIntoView({ block: "center" }));
}

document.getElementById("tabs").append(...TABS.map(([id, title]) => h("button", { type: "button", "data-tab": id, onclick: () => go({ tab: id, ...Object.fromEntries([...state()].filter(([key]) => ["model", "latents", "seed"].includes(key))) }) }, title)));
addEventListener("popstate", showAddressed);
showAddressed();
