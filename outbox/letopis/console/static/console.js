// What the pages do better with scripts; without them, everything but live updates works all the same.
(() => {
  "use strict";

  // The slider of versions says which version it is at while it moves, and goes there when it is let go.
  for (const form of document.querySelectorAll("form[data-slider]")) {
    const slider = form.querySelector("input[type=range]");
    const output = form.querySelector("output");
    slider.addEventListener("input", () => { output.value = slider.value; });
    slider.addEventListener("change", () => form.requestSubmit());
  }

  // A conversation opens at its newest message, unless the address names another place.
  if (document.querySelector("[data-end]") && !location.hash) document.getElementById("end").scrollIntoView({ block: "end" });

  for (const button of document.querySelectorAll("button[data-print]")) {
    button.hidden = false;
    button.addEventListener("click", () => window.print());
  }

  // A choice takes effect at once.
  for (const select of document.querySelectorAll("select[data-submits]")) {
    select.addEventListener("change", () => select.form.requestSubmit());
    for (const button of select.form.querySelectorAll("button[data-fallback]")) button.hidden = true;
  }

  // A form is sent once.
  document.addEventListener("submit", (event) => {
    if (event.target.method !== "post" || event.target.hasAttribute("data-download")) return;
    for (const button of event.target.querySelectorAll("button")) setTimeout(() => { button.disabled = true; });
  });

  // Search from anywhere.
  document.addEventListener("keydown", (event) => {
    if (event.key !== "/" || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.target.matches("input, textarea, select")) return;
    const search = document.querySelector("input[type=search]");
    if (search) { event.preventDefault(); search.focus(); }
  });
})();
