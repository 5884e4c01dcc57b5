// OpenAI's JavaScript library.
import OpenAI from "openai";
import { JSON_MODEL, MODEL, OTHER_MODEL, QUESTION, SCHEMA, STOP, SYSTEM, TOKENS, TOOL, all, run } from "./program.mjs";

const client = (url, token) => new OpenAI({ baseURL: `${url}/v1`, apiKey: token, maxRetries: 0 });
const message = (content, role = "user") => ({ role, content });

async function chat(url, token, options = {}, before = []) {
  const messages = [...before, message(QUESTION)];
  const answer = await client(url, token).chat.completions.create({ model: MODEL, messages, ...options });
  return answer.choices[0].message.content;
}

async function stream(url, token) {
  const body = { model: MODEL, messages: [message(QUESTION)], stream: true, stream_options: { include_usage: true } };
  const chunks = await all(await client(url, token).chat.completions.create(body));
  return chunks.filter((chunk) => chunk.choices.length).map((chunk) => chunk.choices[0].delta.content);
}

async function schema(url, token) {
  const json_schema = { name: "report", schema: SCHEMA, strict: true };
  const body = { model: MODEL, messages: [message(QUESTION)], response_format: { type: "json_schema", json_schema } };
  return (await client(url, token).chat.completions.parse(body)).choices[0].message.parsed;
}

await run("openai-javascript", "openai", {
  list: async (...to) => (await all(client(...to).models.list())).map((model) => model.id),
  show: async (...to) => (await client(...to).models.retrieve(MODEL)).id,
  complete: async (...to) =>
    (await client(...to).completions.create({ model: MODEL, prompt: QUESTION })).choices[0].text,
  chat,
  stream,
  json: async (...to) =>
    JSON.parse(await chat(...to, { model: JSON_MODEL, response_format: { type: "json_object" } })),
  schema,
  tokens: (...to) => chat(...to, { temperature: 0, seed: 1, max_completion_tokens: TOKENS }),
  stop: (...to) => chat(...to, { temperature: 0, top_p: 0.9, max_tokens: 64, stop: [STOP] }),
  system: (...to) => chat(...to, {}, [message(SYSTEM, "system")]),
  developer: (...to) => chat(...to, {}, [message(SYSTEM, "developer")]),
  wrong_token: chat,
  unknown_model: (...to) => chat(...to, { model: OTHER_MODEL }),
  embeddings: async (...to) => (await client(...to).embeddings.create({ model: MODEL, input: QUESTION })).data,
  tools: (...to) => chat(...to, { tools: [TOOL] }),
});
