// Ollama's JavaScript library.
import { Ollama } from "ollama";
import { JSON_MODEL, MODEL, OTHER_MODEL, QUESTION, SCHEMA, STOP, SYSTEM, TOKENS, TOOL, all, run } from "./program.mjs";

const client = (url, token) => new Ollama({ host: url, headers: { Authorization: `Bearer ${token}` } });
const message = (content, role = "user") => ({ role, content });

async function chat(url, token, options = {}, before = []) {
  const messages = [...before, message(QUESTION)];
  return (await client(url, token).chat({ model: MODEL, messages, ...options })).message.content;
}

async function stream(url, token) {
  const parts = await client(url, token).chat({ model: MODEL, messages: [message(QUESTION)], stream: true });
  return (await all(parts)).map((part) => part.message.content);
}

async function show(url, token) {
  const { model_info } = await client(url, token).show({ model: MODEL });
  return Object.entries(model_info).find(([name]) => name.endsWith(".context_length"))[1];
}

await run("ollama-javascript", "ollama", {
  list: async (...to) => (await client(...to).list()).models.map((model) => model.name),
  show,
  complete: async (...to) =>
    (await client(...to).generate({ model: MODEL, prompt: QUESTION, system: SYSTEM })).response,
  chat,
  stream,
  json: async (...to) => JSON.parse(await chat(...to, { model: JSON_MODEL, format: "json" })),
  schema: async (...to) => JSON.parse(await chat(...to, { format: SCHEMA })),
  tokens: (...to) => chat(...to, { options: { temperature: 0, num_ctx: 4096, num_predict: TOKENS } }),
  stop: (...to) => chat(...to, { options: { temperature: 0, seed: 1, stop: [STOP] } }),
  system: (...to) => chat(...to, {}, [message(SYSTEM, "system")]),
  developer: (...to) => chat(...to, {}, [message(SYSTEM, "developer")]),
  keep_alive: (...to) => chat(...to, { keep_alive: "10m" }),
  wrong_token: chat,
  unknown_model: (...to) => chat(...to, { model: OTHER_MODEL }),
  embeddings: async (...to) => (await client(...to).embed({ model: MODEL, input: QUESTION })).embeddings,
  tools: (...to) => chat(...to, { tools: [TOOL] }),
});
