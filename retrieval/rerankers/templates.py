"""How a language model is asked whether a passage answers a query: a chat template, saved with its tokenizer.

sentence-transformers hands a pair to the template as messages of the roles ``query`` and ``document``, and a prompt,
which is the instruction here, as one of the role ``system``. The answer is read off the next token: the score is
``logit(yes) - logit(no)``, whose sigmoid is P(yes) of the softmax over the two.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

TemplateName = Literal["qwen3", "plain"]
INSTRUCTION = "Given a web search query, retrieve relevant passages that answer the query"
_QWEN3_SYSTEM = (
    "Judge whether the Document meets the requirements based on the Query and the Instruct provided. "
    'Note that the answer can only be "yes" or "no".'
)


@dataclass(frozen=True, slots=True)
class Template:
    """The texts around instruction, query and passage."""

    start: str
    before_query: str
    before_passage: str
    end: str
    yes: str = "yes"
    no: str = "no"

    def chat(self) -> str:
        """The template in Jinja. The instruction is that of the message ``system``, or the usual one."""
        given = 'messages | selectattr("role", "eq", "{}") | map(attribute="content")'
        system = f"({given.format('system')} | list + [{json.dumps(INSTRUCTION)}]) | first"
        parts = [
            json.dumps(self.start),
            system,
            json.dumps(self.before_query),
            f"{given.format('query')} | first",
            json.dumps(self.before_passage),
            f"{given.format('document')} | first",
            json.dumps(self.end),
        ]
        return "".join(f"{{{{ {part} }}}}" for part in parts)

    def render(self, query: str, passage: str, instruction: str | None = None) -> str:
        """The text that the model reads."""
        asked = INSTRUCTION if instruction is None else instruction
        return self.start + asked + self.before_query + query + self.before_passage + passage + self.end


TEMPLATES: Mapping[TemplateName, Template] = {
    # Qwen3-Reranker (Zhang et al. 2025, section 2): chat markup and an empty thought
    "qwen3": Template(
        start=f"<|im_start|>system\n{_QWEN3_SYSTEM}<|im_end|>\n<|im_start|>user\n<Instruct>: ",
        before_query="\n<Query>: ",
        before_passage="\n<Document>: ",
        end="<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n",
    ),
    # without markup, for models that were never taught to chat
    "plain": Template(
        start="Instruction: ",
        before_query="\nQuery: ",
        before_passage="\nDocument: ",
        end="\nDoes the document answer the query?\n",
    ),
}
