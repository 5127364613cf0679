// The page of a server: a prompt to try, and its metrics. All addresses are relative, so that it works below any prefix.

import { EventReader, parseMetrics } from "./text.js";

const at = (path) => new URL(path, document.baseURI);
const $ = (id) => document.getElementById(id);
const POLL_MS = 2000;
const POINTS = 60;

let key = sessionStorage.getItem("octavo-key") || "";
let model = "";
let turns = [];
let running = null;

// --- asking the server ------------------------------------------------------------------------------------------------

class Refused extends Error {}

async function call(path, options = {}) {
  const headers = { ...(key ? { authorization: `Bearer ${key}` } : {}), ...(options.body ? { "content-type": "application/json" } : {}) };
  const answer = await fetch(at(path), { ...options, headers, credentials: "omit", cache: "no-store" });
  if (answer.ok) return answer;
  const said = await answer.json().catch(() => null);
  const error = new Refused(said?.error?.message ?? `the server answered ${answer.status}`);
  error.status = answer.status;
  if (answer.status === 401) askForKey();
  throw error;
}

function askForKey() {
  if (!$("ask").open) {
    $("key").value = "";
    $("ask").showModal();
  }
}

$("ask-form").addEventListener("submit", () => {
  key = $("key").value.trim();
  sessionStorage.setItem("octavo-key", key);
  hideFault();
  begin();
});
$("ask-no").addEventListener("click", () => $("ask").close());

// --- the conversation -------------------------------------------------------------------------------------------------

const mode = () => document.querySelector("input[name=mode]:checked").value;

function showFault(text) {
  $("fault").textContent = text;
  $("fault").hidden = false;
}

function hideFault() {
  $("fault").hidden = true;
}

function addTurn(role) {
  $("empty").hidden = true;
  const turn = document.createElement("div");
  turn.className = `turn ${role}`;
  const who = document.createElement("span");
  who.className = "hidden";
  who.textContent = role === "user" ? "You: " : "Model: ";
  turn.append(who);
  $("talk").append(turn);
  return turn;
}

function part(turn, kind, text = "") {
  const span = document.createElement("span");
  span.className = kind;
  span.textContent = text;
  turn.append(span);
  return span;
}

// The end of the conversation stays in sight, unless somebody reads further up.
function follow(change) {
  const talk = $("talk");
  const atEnd = talk.scrollHeight - talk.scrollTop - talk.clientHeight < 40;
  change();
  if (atEnd) talk.scrollTop = talk.scrollHeight;
}

function request(prompt) {
  const fields = { model, stream: true, stream_options: { include_usage: true } };
  const temperature = $("temperature").valueAsNumber;
  const most = $("most").valueAsNumber;
  if (Number.isFinite(temperature)) fields.temperature = temperature;
  if (Number.isFinite(most)) fields.max_tokens = most;
  if (mode() === "text") return ["v1/completions", { ...fields, prompt }];
  const system = $("system").value ? [{ role: "system", content: $("system").value }] : [];
  return ["v1/chat/completions", { ...fields, messages: [...system, ...turns, { role: "user", content: prompt }] }];
}

async function send(prompt) {
  hideFault();
  const [path, fields] = request(prompt);
  const isChat = mode() === "chat";
  if (isChat) part(addTurn("user"), "said", prompt);
  const turn = addTurn("model");
  if (!isChat) part(turn, "given", prompt);
  let thought = null;
  const said = part(turn, "said");
  turn.classList.add("waits");
  $("talk").setAttribute("aria-busy", "true");
  $("talk").scrollTop = $("talk").scrollHeight;
  running = new AbortController();
  $("stop").hidden = false;
  $("send").disabled = true;
  const began = performance.now();
  let first = 0;
  let usage = null;
  let finished = false;
  let stopped = false;
  try {
    const answer = await call(path, { method: "POST", body: JSON.stringify(fields), signal: running.signal });
    const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
    const events = new EventReader();
    for (;;) {
      const { done, value } = await reader.read();
      if (done) break;
      follow(() => {
        for (const data of events.feed(value)) {
          if (data === "[DONE]") { finished = true; continue; }
          const chunk = JSON.parse(data);
          if (chunk.error) throw new Refused(chunk.error.message);
          usage = chunk.usage ?? usage;
          const choice = chunk.choices?.[0];
          const thinking = choice?.delta?.reasoning_content;
          const text = choice?.text ?? choice?.delta?.content;
          if (thinking || text) first ||= performance.now();
          if (thinking) {
            if (!thought) said.before((thought = part(turn, "thought")));
            thought.append(thinking);
          }
          if (text) said.append(text);
        }
      });
    }
    if (!finished) throw new Refused("the connection broke off");
  } catch (error) {
    stopped = error.name === "AbortError";
    if (!stopped) showFault(error.message);
  }
  running = null;
  turn.classList.remove("waits");
  $("talk").setAttribute("aria-busy", "false");
  $("stop").hidden = true;
  $("send").disabled = false;
  said.normalize();
  const text = said.textContent;
  if (finished || text) {
    if (isChat) turns.push({ role: "user", content: prompt }, { role: "assistant", content: text });
    follow(() => part(turn, "facts", facts(usage, first - began, performance.now() - first, stopped)));
  } else {
    // Nothing came: the turn does not count, and its prompt is not lost.
    if (isChat) turn.previousSibling.remove();
    turn.remove();
    if (!$("prompt").value) $("prompt").value = prompt;
    $("empty").hidden = $("talk").querySelector(".turn") !== null;
  }
  $("prompt").focus();
}

function facts(usage, toFirst, sinceFirst, stopped) {
  const words = [];
  if (usage) {
    words.push(`${usage.completion_tokens} tokens`);
    // Of a short answer only the pauses of the network would be seen.
    if (usage.completion_tokens >= 16 && sinceFirst >= 50) words.push(`${whole((1000 * (usage.completion_tokens - 1)) / sinceFirst)} tokens/s`);
  }
  if (toFirst > 0) words.push(`first after ${toFirst < 10 ? toFirst.toFixed(1) : whole(toFirst)} ms`);
  if (stopped) words.push("stopped");
  return words.join(" · ");
}

const whole = (number) => Math.round(number).toLocaleString("en");

$("form").addEventListener("submit", (event) => {
  event.preventDefault();
  const prompt = $("prompt").value;
  if (!prompt.trim() || running) return;
  $("prompt").value = "";
  send(prompt);
});

$("prompt").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    $("form").requestSubmit();
  } else if (event.key === "Escape") {
    running?.abort();
  }
});

$("stop").addEventListener("click", () => running?.abort());
$("reset").addEventListener("click", () => {
  running?.abort();
  turns = [];
  for (const turn of $("talk").querySelectorAll(".turn")) turn.remove();
  $("empty").hidden = false;
  hideFault();
  $("prompt").focus();
});

// --- metrics ----------------------------------------------------------------------------------------------------------

let last = null;
const rates = [];

async function poll() {
  if (document.hidden || $("ask").open) return;
  try {
    const found = parseMetrics(await (await call("metrics")).text());
    show(found, performance.now());
    state("good", "ready");
  } catch (error) {
    state("bad", error instanceof Refused ? (error.status === 401 ? "needs a key" : error.message) : "not reachable");
  }
}

function show(found, now) {
  const get = (name) => found.get(`octavo:${name}`);
  if (get("num_requests_running") === undefined) return;
  $("running").value = whole(get("num_requests_running"));
  $("waiting").value = whole(get("num_requests_waiting"));
  const used = get("kv_cache_usage_perc");
  $("cache").value = `${(100 * used).toFixed(used < 0.1 ? 1 : 0)} %`;
  $("cache-bar").value = used;
  const seen = {
    now,
    tokens: get("generation_tokens_total"),
    firstSum: get("time_to_first_token_seconds_sum"),
    firstCount: get("time_to_first_token_seconds_count"),
  };
  if (last && seen.tokens >= last.tokens) {
    const rate = (1000 * (seen.tokens - last.tokens)) / (now - last.now);
    rates.push(rate);
    if (rates.length > POINTS) rates.shift();
    $("rate").value = rate < 10 ? rate.toFixed(1) : whole(rate);
    draw();
    const firsts = seen.firstCount - last.firstCount;
    if (firsts > 0) {
      const ms = (1000 * (seen.firstSum - last.firstSum)) / firsts;
      $("first").value = ms < 1000 ? `${ms < 10 ? ms.toFixed(1) : whole(ms)} ms` : `${(ms / 1000).toFixed(1)} s`;
    }
  }
  last = seen;
}

function draw() {
  const top = Math.max(...rates, 1);
  const x = (i) => 240 - ((rates.length - 1 - i) * 240) / (POINTS - 1);
  const y = (rate) => 46 - (44 * rate) / top;
  const line = rates.map((rate, i) => `${i ? "L" : "M"}${x(i).toFixed(1)} ${y(rate).toFixed(1)}`).join("");
  $("spark").querySelector(".line").setAttribute("d", line);
  $("spark").querySelector(".area").setAttribute("d", rates.length > 1 ? `${line}L240 48L${x(0).toFixed(1)} 48Z` : "");
}

function state(kind, words) {
  $("dot").className = `dot ${kind}`;
  if ($("state").textContent !== words) $("state").textContent = words;
}

async function begin() {
  try {
    const listed = await (await call("v1/models")).json();
    model = listed.data[0].id;
    $("model").textContent = `${model} · ${whole(listed.data[0].max_model_len)} tokens of context`;
    document.title = `${model} · octavo`;
  } catch (error) {
    if (error.status !== 401) showFault(error.message);
  }
  await poll();
}

begin();
setInterval(poll, POLL_MS);
document.addEventListener("visibilitychange", poll);
