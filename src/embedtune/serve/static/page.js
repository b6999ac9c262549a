// Everything that comes from a text, a bundle or the server is put in as text, never as markup.
"use strict";

const find = (id) => document.getElementById(id);

function make(tag, text, className) {
  const element = document.createElement(tag);
  if (text !== undefined) element.textContent = text;
  if (className) element.className = className;
  return element;
}

async function ask(path, body) {
  const headers = {};
  if (find("key").value) headers.Authorization = `Bearer ${find("key").value}`;
  if (body) headers["Content-Type"] = "application/json";
  const answer = await fetch(path, { method: body ? "POST" : "GET", headers, body: body && JSON.stringify(body) });
  const value = await answer.json();
  if (answer.status === 401) find("key-row").hidden = false;
  if (!answer.ok) throw new Error(value.error.message);
  return value;
}

async function listModels() {
  const { data } = await ask("v1/models");
  find("model").replaceChildren(...data.map((model) => make("option", model.id)));
  find("model-row").hidden = data.length < 2;
}

function drawProbabilities(entries) {
  const rows = entries.slice(0, 20).map(({ label, probability }) => {
    const row = make("tr");
    const head = make("th", String(label));
    head.scope = "row";
    const bar = make("span", undefined, "bar");
    bar.style.width = `${100 * probability}%`;
    const cell = make("td");
    cell.append(bar);
    row.append(head, cell, make("td", `${(100 * probability).toFixed(1)} %`));
    return row;
  });
  find("probabilities").tBodies[0].replaceChildren(...rows);
}

function drawWords(text, words) {
  const characters = Array.from(text); // positions count characters, not UTF-16 units
  const strongest = Math.max(0.01, ...words.map((word) => Math.abs(word.change)));
  const parts = [];
  let at = 0;
  for (const word of words) {
    parts.push(characters.slice(at, word.start).join(""));
    const points = Math.round(1000 * word.change) / 10;
    const span = make("span", word.text, `word ${points >= 0 ? "for" : "against"}`);
    span.style.setProperty("--strength", (0.55 * Math.abs(word.change)) / strongest);
    if (points) span.dataset.change = `${points > 0 ? "+" : "−"}${Math.abs(points).toFixed(1)}`;
    parts.push(span);
    at = word.end;
  }
  find("words").replaceChildren(...parts, characters.slice(at).join(""));
}

function show(problem) {
  find("problem").textContent = problem ? problem.message : "";
  find("problem").hidden = !problem;
}

find("form").addEventListener("submit", async (event) => {
  event.preventDefault();
  const text = find("text").value;
  find("ask").disabled = true;
  try {
    if (!find("model").options.length) await listModels();
    const answer = await ask("v1/explain", { model: find("model").value, input: text });
    find("label").textContent = String(answer.label);
    drawProbabilities(answer.probabilities);
    drawWords(text, answer.words);
    find("truncated").hidden = !answer.truncated;
    find("answer").hidden = false;
    show(null);
  } catch (problem) {
    find("answer").hidden = true;
    show(problem);
  } finally {
    find("ask").disabled = false;
  }
});

find("text").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) find("form").requestSubmit();
});

listModels().catch(show);
