"use strict";
// What htmx does not do: pictures that are dropped, pasted or picked, the slider, + and -, the keyboard.
const ask = document.getElementById("ask");
const again = () => ask.requestSubmit();

function send(file) {
  if (!file || !file.type.startsWith("image/")) return;
  const files = new DataTransfer();
  files.items.add(file);
  document.getElementById("file").files = files.files;
  document.getElementById("drop").submit();
}

if (document.getElementById("drop")) {
  const overlay = document.getElementById("overlay");
  document.getElementById("pick").addEventListener("click", () => document.getElementById("file").click());
  document.getElementById("file").addEventListener("change", (event) => send(event.target.files[0]));
  document.addEventListener("paste", (event) => send([...event.clipboardData.files][0]));
  document.addEventListener("dragover", (event) => { event.preventDefault(); overlay.hidden = false; });
  document.addEventListener("dragleave", (event) => { if (!event.relatedTarget) overlay.hidden = true; });
  document.addEventListener("drop", (event) => { event.preventDefault(); overlay.hidden = true; send(event.dataTransfer.files[0]); });
}

document.addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (!button || !ask) return;
  if (button.dataset.add) {
    const term = document.createElement("span");
    term.className = "term";
    term.append(button.dataset.add === "like" ? "like " : "not like ", Object.assign(document.createElement("b"), { textContent: button.dataset.id }),
      Object.assign(document.createElement("input"), { type: "hidden", name: button.dataset.add, value: button.dataset.id }));
    const remove = Object.assign(document.createElement("button"), { type: "button", textContent: "×" });
    remove.dataset.remove = "";
    term.append(remove);
    ask.querySelector(".line").after(term);
    again();
  } else if ("remove" in button.dataset) {
    button.closest(".term").remove();
    again();
  } else if ("max" in button.dataset) {
    const max = document.getElementById("max");
    max.value = button.dataset.max;
    max.disabled = !button.dataset.max;
    again();
  }
});

const slider = document.getElementById("bits-slider");
if (slider) slider.addEventListener("input", () => {
  const stop = slider.dataset.stops.split(",")[slider.value];
  const bits = document.getElementById("bits"), floats = document.getElementById("floats");
  bits.value = stop;
  bits.disabled = stop === "floats";
  floats.disabled = !bits.disabled;
  document.getElementById("shown-bits").textContent = stop;
  slider.setAttribute("aria-valuetext", stop);
});

document.body.addEventListener("htmx:afterSwap", (event) => {
  // What stands open beside the results is of the same query.
  if (event.target.id === "results") document.querySelectorAll("#cut[open] > div, #compare[open] > div").forEach((part) => htmx.trigger(part, "again"));
});

document.body.addEventListener("htmx:afterSettle", (event) => {
  // The checkboxes have come: they say it now, not the hidden fields that kept them.
  if (event.target.closest("#filters")) ask.querySelectorAll(".kept-filter").forEach((kept) => kept.remove());
});

// A decision takes its own button away: the keyboard goes on with the next one.
let decided = 0;
const choices = () => [...document.querySelectorAll("#review button")];
document.body.addEventListener("htmx:beforeRequest", (event) => { if (event.target.closest("#review")) decided = choices().indexOf(document.activeElement); });
document.body.addEventListener("htmx:afterSettle", (event) => { if (event.target.id === "review" && choices().length) choices()[Math.min(Math.max(decided, 0), choices().length - 1)].focus(); });
document.body.addEventListener("htmx:responseError", (event) => { const said = document.getElementById("said"); if (said) said.textContent = JSON.parse(event.detail.xhr.responseText).error; });

document.addEventListener("keydown", (event) => {
  const typing = event.target.matches("input, textarea");
  if (event.key === "/" && !typing) { event.preventDefault(); document.getElementById("text").focus(); }
  if (!["ArrowRight", "ArrowLeft", "ArrowDown", "ArrowUp"].includes(event.key) || typing) return;
  const links = [...document.querySelectorAll(".card .picture")];
  if (!links.length) return;
  const now = links.indexOf(document.activeElement);
  const across = links.filter((link) => link.offsetTop === links[0].offsetTop).length;
  const step = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: across, ArrowUp: -across }[event.key];
  event.preventDefault();
  links[Math.min(Math.max(now < 0 ? 0 : now + step, 0), links.length - 1)].focus();
});
