"""The prompt of training, evaluation and serving."""

import unicodedata

INSTRUCTION = "Using the database '{db_id}', translate the following natural language question into a SQL query."

# DeepSeek's template (LLaMA-Factory calls it `deepseek3`). The schema comes first, so that a server can cache the
# prefix that all questions about one database share. The tokenizer adds the BOS token.
PROMPT_TEMPLATE = "{system}<｜User｜>{instruction}\n{input}<｜Assistant｜>"


def instruction(db_id: str) -> str:
    """The instruction for a question about the database `db_id`."""
    return INSTRUCTION.format(db_id=db_id)


def render_prompt(system: str, instruction: str, input: str) -> str:
    """The text that a model continues with SQL, without BOS, which the tokenizer or the server adds.

    The text is normalized to Unicode's NFC. DeepSeek's tokenizer does this itself, but llama.cpp does not.
    """
    text = PROMPT_TEMPLATE.format(system=system, instruction=instruction, input=input)
    return unicodedata.normalize("NFC", text)
