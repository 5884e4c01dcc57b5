// Vercel's AI SDK with its provider for servers with OpenAI's protocol, and with a provider for Ollama.
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { Output, embed, generateText, jsonSchema, streamText, tool } from "ai";
import { createOllama } from "ollama-ai-provider-v2";
import { MODEL, OTHER_MODEL, QUESTION, SCHEMA, STOP, SYSTEM, TOKENS, TOOL, all, run } from "./program.mjs";

globalThis.AI_SDK_LOG_WARNINGS = false;

const openai = (url, token) =>
  createOpenAICompatible({
    name: "pod", baseURL: `${url}/v1`, apiKey: token, includeUsage: true, supportsStructuredOutputs: true,
  });
const ollama = (url, token) => createOllama({ baseURL: `${url}/api`, headers: { Authorization: `Bearer ${token}` } });
const text = async (provider, options = {}, model = MODEL) =>
  (await generateText({ model: provider(model), prompt: QUESTION, maxRetries: 0, ...options })).text;

async function stream(provider) {
  let failure;
  const onError = ({ error }) => (failure = error);
  const parts = await all(
    streamText({ model: provider(MODEL), prompt: QUESTION, maxRetries: 0, onError }).textStream,
  );
  if (failure) throw failure;
  return parts;
}

async function schema(provider) {
  const output = Output.object({ schema: jsonSchema(SCHEMA) });
  return (await generateText({ model: provider(MODEL), prompt: QUESTION, maxRetries: 0, output })).output;
}

const rooms = tool({
  description: TOOL.function.description,
  inputSchema: jsonSchema(TOOL.function.parameters),
});

const common = (provider) => ({
  chat: (...to) => text(provider(...to)),
  stream: (...to) => stream(provider(...to)),
  schema: (...to) => schema(provider(...to)),
  tokens: (...to) => text(provider(...to), { temperature: 0, maxOutputTokens: TOKENS }),
  system: (...to) => text(provider(...to), { system: SYSTEM }),
  wrong_token: (...to) => text(provider(...to)),
  unknown_model: (...to) => text(provider(...to), {}, OTHER_MODEL),
  embeddings: async (...to) =>
    (await embed({ model: provider(...to).textEmbeddingModel(MODEL), value: QUESTION, maxRetries: 0 })).embedding,
  tools: (...to) => text(provider(...to), { tools: { rooms } }),
});

await run("ai-sdk-openai-compatible", "@ai-sdk/openai-compatible", {
  complete: async (...to) =>
    (await generateText({ model: openai(...to).completionModel(MODEL), prompt: QUESTION, maxRetries: 0 })).text,
  ...common(openai),
  stop: (...to) => text(openai(...to), { temperature: 0, stopSequences: [STOP] }),
});
await run("ai-sdk-ollama", "ollama-ai-provider-v2", {
  ...common(ollama),
  // This provider does not send stopSequences.
  stop: (...to) => text(ollama(...to), { providerOptions: { ollama: { options: { num_ctx: 4096, stop: [STOP] } } } }),
});
