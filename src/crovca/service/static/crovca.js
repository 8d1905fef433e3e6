"use strict";
// What htmx does not do: pictures that are dropped, pasted or picked, the slider, + and -, the keyboard.
const ask = document.getElementById("ask");
const again = () => ask.requestSubmit();

// A small copy of what was handed over: the page that answers knows its embedding alone.
async function remember(file) {
  try {
    const picture = await createImageBitmap(file), scale = Math.min(1, 144 / Math.max(picture.width, picture.height));
    const canvas = Object.assign(document.createElement("canvas"), { width: Math.ceil(scale * picture.width), height: Math.ceil(scale * picture.height) });
    canvas.getContext("2d").drawImage(picture, 0, 0, canvas.width, canvas.height);
    sessionStorage.setItem("picture", canvas.toDataURL("image/jpeg", 0.8));
  } catch { sessionStorage.removeItem("picture"); }
}

async function send(file) {
  if (!file || !file.type.startsWith("image/")) return;
  document.getElementById("busy").classList.add("busy");
  await remember(file);
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

const dropped = document.querySelector(".term input[name=z]");
if (dropped) {
  const fresh = sessionStorage.getItem("picture");
  sessionStorage.removeItem("picture");
  try { if (fresh) sessionStorage.setItem(dropped.value, fresh); } catch { sessionStorage.clear(); }
  const small = fresh || sessionStorage.getItem(dropped.value);
  if (small) dropped.before(Object.assign(document.createElement("img"), { src: small, alt: "" }));
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

// What went wrong is said where the answer would be.
function wrong(message) {
  const at = document.getElementById("said") || document.getElementById("results");
  at.replaceChildren(Object.assign(document.createElement("p"), { className: "message", role: "alert", textContent: message }));
}
document.body.addEventListener("htmx:responseError", (event) => {
  let message = `The service answered ${event.detail.xhr.status}; load the page again.`;
  try { message = JSON.parse(event.detail.xhr.responseText).error; } catch { /* not ours, as from a proxy */ }
  wrong(message);
});
document.body.addEventListener("htmx:sendError", () => wrong("The service does not answer. Is 'crovca serve' still running?"));

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
