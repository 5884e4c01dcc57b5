"""The prompt template of a published model, in the template languages of Ollama and llama.cpp."""

from dataclasses import dataclass
from typing import Self

from chatmetrics.components.errors import InputError

SYSTEM, QUESTION = "{system}", "{instruction}\n{input}"


@dataclass(frozen=True, slots=True)
class PromptTemplate:
    """The system text, followed by the turns: `{system}` + before + question + after + answer + before ..."""

    before: str
    after: str

    @classmethod
    def parse(cls, template: str) -> Self:
        """Parse a template such as `{system}<｜User｜>{instruction}\\n{input}<｜Assistant｜>`.

        Raises:
            InputError: The template has another form.
        """
        before, question, after = template.removeprefix(SYSTEM).partition(QUESTION)
        if not (template.startswith(SYSTEM) and question and before) or "{" in before + after:
            expected = f"{SYSTEM}MARK{QUESTION}MARK"
            raise InputError(f"the model's prompt template is {template!r}, expected the form {expected!r}")
        return cls(before, after)

    def go(self) -> str:
        """Go template for Ollama, which repeats it for each turn."""
        return f"{{{{ .System }}}}{self.before}{{{{ .Prompt }}}}{self.after}"

    def jinja(self) -> str:
        """Jinja chat template for llama.cpp, which renders the same prompt as `go`."""
        return (
            "{%- for message in messages if message.role == 'system' -%}{{ message.content }}{%- endfor -%}"
            "{%- for message in messages -%}"
            f"{{%- if message.role == 'user' -%}}{{{{ {self.before!r} + message.content + {self.after!r} }}}}"
            "{%- elif message.role == 'assistant' -%}{{ message.content }}{%- endif -%}"
            "{%- endfor -%}"
        )
