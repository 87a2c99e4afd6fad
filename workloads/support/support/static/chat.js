"use strict";
const session = Number(sessionStorage.session ??= 100000 + Math.floor(Math.random() * 900000));
const log = document.getElementById("log");
const form = document.getElementById("ask");

function say(who, text) {
  const item = document.createElement("li");
  item.className = who;
  item.textContent = text;
  log.append(item);
  item.scrollIntoView({ block: "end" });
  return item;
}

function show(item, reply) {
  item.textContent = reply.answer;
  const note = document.createElement("small");
  note.textContent = reply.sources.length ? `From: ${reply.sources.join(" · ")}` : `Topic: ${reply.intent}`;
  item.append(note);
  item.scrollIntoView({ block: "end" });
}

// Server-sent events over POST: EventSource can only GET.
async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let buffer = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    buffer += value;
    const whole = buffer.split("\n\n");
    buffer = whole.pop();
    for (const event of whole) {
      const [name, data] = event.split("\n");
      yield [name.slice(7), JSON.parse(data.slice(6))];
    }
  }
}

form.addEventListener("submit", async (submit) => {
  submit.preventDefault();
  const message = form.message.value.trim();
  if (!message) return;
  form.reset();
  form.querySelector("button").disabled = true;
  say("me", message);
  const item = say("desk", "");
  try {
    const answer = await fetch("/chat", {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: JSON.stringify({ session, message, stream: true }),
    });
    if (!answer.ok) throw new Error((await answer.json()).detail);
    if (!answer.headers.get("content-type").startsWith("text/event-stream")) return show(item, await answer.json());
    for await (const [name, data] of events(answer.body)) {
      if (name === "piece") {
        item.textContent += data.text;
        item.scrollIntoView({ block: "end" });
      } else if (name === "reply") show(item, data);
      else throw new Error(data.detail);
    }
  } catch (error) {
    item.textContent = `Sorry, that did not work: ${error.message ?? error}`;
  } finally {
    form.querySelector("button").disabled = false;
    form.message.focus();
  }
});
