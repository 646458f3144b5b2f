"use strict";
// The page of `anchorite serve`: sends the image that is dropped or chosen, and draws what comes back.

const byId = (id) => document.getElementById(id);
let current = null; // the file shown
let asked = 0; // number of the newest question; answers to older ones are dropped

const colourOf = (classId) => `hsl(${(classId * 137.5) % 360} 75% 50%)`;

function say(text, isWrong = false) {
  byId("said").textContent = text;
  byId("said").classList.toggle("wrong", isWrong);
}

function draw(answer) {
  const svg = byId("boxes"), rows = byId("rows");
  svg.setAttribute("viewBox", `0 0 ${answer.width} ${answer.height}`);
  svg.replaceChildren();
  rows.replaceChildren();
  for (const found of answer.detections) {
    const [left, top, right, bottom] = found.box_xyxy;
    const rect = document.createElementNS("http://www.w3.org/2000/svg", "rect");
    for (const [name, value] of Object.entries({ x: left, y: top, width: right - left, height: bottom - top })) {
      rect.setAttribute(name, value);
    }
    rect.style.stroke = colourOf(found.class_id);
    svg.append(rect);
    const row = rows.insertRow();
    row.tabIndex = 0;
    const cells = [found.class_name, found.score.toFixed(2), found.box_xyxy.map((side) => side.toFixed(0)).join(", ")];
    for (const text of cells) row.insertCell().textContent = text;
    row.cells[0].style.borderLeftColor = colourOf(found.class_id);
    for (const [event, on] of [["mouseenter", true], ["focus", true], ["mouseleave", false], ["blur", false]]) {
      row.addEventListener(event, () => rect.classList.toggle("chosen", on));
    }
  }
  document.querySelector("table").hidden = answer.detections.length === 0;
  const count = answer.detections.length;
  say(`${count} object${count === 1 ? "" : "s"} in ${answer.width} x ${answer.height} pixels, ${answer.milliseconds} ms`);
}

async function ask() {
  if (current === null) return;
  const number = ++asked;
  say("looking ...");
  try {
    const confidence = byId("confidence").value;
    const response = await fetch(`/predict?confidence=${confidence}`, { method: "POST", body: current });
    const answer = await response.json();
    if (number !== asked) return;
    if (response.ok) draw(answer);
    else say(answer.error, true);
  } catch (error) {
    if (number === asked) say(`the server did not answer (${error.message})`, true);
  }
}

function show(file) {
  current = file;
  const image = byId("image");
  if (image.src) URL.revokeObjectURL(image.src);
  image.src = URL.createObjectURL(file);
  byId("picture").hidden = false;
  byId("boxes").replaceChildren();
  byId("rows").replaceChildren();
  ask();
}

byId("file").addEventListener("change", (event) => event.target.files[0] && show(event.target.files[0]));
byId("drop").addEventListener("keydown", (event) => {
  if (event.target === byId("drop") && (event.key === "Enter" || event.key === " ")) byId("file").click();
});
for (const name of ["dragover", "dragleave", "drop"]) {
  byId("drop").addEventListener(name, (event) => {
    event.preventDefault();
    byId("drop").classList.toggle("over", name === "dragover");
    if (name === "drop" && event.dataTransfer.files[0]) show(event.dataTransfer.files[0]);
  });
}
byId("confidence").addEventListener("input", (event) => { byId("shown").textContent = (+event.target.value).toFixed(2); });
byId("confidence").addEventListener("change", ask);
byId("address").textContent = location.origin;
fetch("/info").then((response) => response.json()).then((info) => {
  const names = info.class_names, more = names.length > 12 ? `, and ${names.length - 12} more` : "";
  byId("facts").textContent = `size ${info.model}, ${info.image_size} px: ${names.slice(0, 12).join(", ")}${more}`;
});
