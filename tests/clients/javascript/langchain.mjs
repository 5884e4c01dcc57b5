// LangChain's packages for OpenAI and Ollama.
import { HumanMessage, SystemMessage } from "@langchain/core/messages";
import { ChatOllama, Ollama, OllamaEmbeddings } from "@langchain/ollama";
import { ChatOpenAI, OpenAIEmbeddings } from "@langchain/openai";
import { JSON_MODEL, MODEL, OTHER_MODEL, QUESTION, SCHEMA, STOP, SYSTEM, TOKENS, TOOL, all, run } from "./program.mjs";

const openai = (url, token, options = {}, Kind = ChatOpenAI) =>
  new Kind({ model: MODEL, apiKey: token, maxRetries: 0, configuration: { baseURL: `${url}/v1` }, ...options });
const ollama = (url, token, options = {}, Kind = ChatOllama) =>
  new Kind({ model: MODEL, baseUrl: url, headers: { Authorization: `Bearer ${token}` }, maxRetries: 0, ...options });
const text = async (model, options) => (await model.invoke(QUESTION, options)).content;
const messages = [new SystemMessage(SYSTEM), new HumanMessage(QUESTION)];

const common = (model) => ({
  chat: (...to) => text(model(...to)),
  stream: async (...to) => (await all(await model(...to).stream(messages))).map((chunk) => chunk.content),
  schema: (...to) => model(...to).withStructuredOutput(SCHEMA, { method: "jsonSchema", name: "report" }).invoke(QUESTION),
  system: async (...to) => (await model(...to).invoke(messages)).content,
  stop: (...to) => text(model(...to, { temperature: 0 }), { stop: [STOP] }),
  wrong_token: (...to) => text(model(...to)),
  unknown_model: (...to) => text(model(...to, { model: OTHER_MODEL })),
  tools: (...to) => text(model(...to).bindTools([TOOL])),
});

await run("langchain-js-openai", "@langchain/openai", {
  ...common(openai),
  json: async (...to) =>
    JSON.parse(await text(openai(...to, { model: JSON_MODEL }), { response_format: { type: "json_object" } })),
  tokens: (...to) => text(openai(...to, { temperature: 0, maxTokens: TOKENS })),
  embeddings: (...to) => openai(...to, {}, OpenAIEmbeddings).embedQuery(QUESTION),
});
await run("langchain-js-ollama", "@langchain/ollama", {
  ...common(ollama),
  complete: (...to) => ollama(...to, {}, Ollama).invoke(QUESTION),
  json: async (...to) => JSON.parse(await text(ollama(...to, { model: JSON_MODEL, format: "json" }))),
  tokens: (...to) => text(ollama(...to, { temperature: 0, numCtx: 4096, numPredict: TOKENS })),
  keep_alive: (...to) => text(ollama(...to, { keepAlive: "10m" })),
  embeddings: (...to) => ollama(...to, {}, OllamaEmbeddings).embedQuery(QUESTION),
});
