// What all client programs share: each use gets its own base URL, and its result is printed as a line of JSON.
import { readFileSync } from "node:fs";

export const MODEL = "hotel", JSON_MODEL = "report", OTHER_MODEL = "unknown";
export const QUESTION = "All hotels?", SYSTEM = "Answer with SQL.", STOP = " ORDER", TOKENS = 3;
// The model is forced to answer with exactly this object.
export const SCHEMA = {
  title: "Report",
  type: "object",
  properties: { sql: { type: "string", enum: ["SELECT 1"] } },
  required: ["sql"],
  additionalProperties: false,
};
export const TOOL = {
  type: "function",
  function: {
    name: "rooms",
    description: "Number of rooms of a hotel",
    parameters: { type: "object", properties: { hotel: { type: "string" } }, required: ["hotel"] },
  },
};

/**
 * Run the uses of a client, and print a line of JSON for each.
 *
 * @param client Name of the client in the table, which is also the first part of the paths that it requests.
 * @param name The package whose version is printed.
 * @param uses A function for each use. It gets a base URL and a token, and returns what the client returned.
 */
export async function run(client, name, uses) {
  const { version } = JSON.parse(readFileSync(`node_modules/${name}/package.json`, "utf8"));
  for (const [use, ask] of Object.entries(uses)) {
    const token = use === "wrong_token" ? "wrong" : process.env.CLIENT_TOKEN;
    let outcome;
    try {
      outcome = { result: await ask(`${process.env.CLIENT_ENDPOINT}/${client}/${use}`, token) };
    } catch (error) {
      outcome = { error: `${error.name}: ${error.message}` };
    }
    console.log(JSON.stringify({ client, version, use, ...outcome }));
  }
}

/** All elements of an asynchronous iterable. */
export async function all(parts) {
  const found = [];
  for await (const part of parts) found.push(part);
  return found;
}
