"""The template that a model was trained with, as the Jinja chat template that other tools read from its tokenizer.

Without it a tuned base model, whose tokenizer has no template of its own, would be asked elsewhere in a form it never saw.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tarazu.chat.data.chat_template import Template


def chat_template(template: Template) -> str:
    """Jinja that writes what `template.encode` and `encode_prompt` tokenise, for roles system, user and assistant."""
    pieces, bos = template.parts, template.tokenizer.bos_token
    begin = bos if template.add_bos and not pieces.start.startswith(bos) else ""
    start_system = pieces.start if pieces.start_system is None else pieces.start_system
    folded = pieces.system_open is None
    write = {name: json.dumps(text, ensure_ascii=False) for name, text in {
        "start": begin + pieces.start, "opening": begin + start_system + (pieces.system_open or ""), "close": pieces.system_close, "fold": pieces.system_separator,
        "ask": pieces.user_open, "asked": pieces.user_close, "answer": pieces.assistant_open, "end": pieces.end_of_turn + pieces.after_turn,
    }.items()}  # fmt: skip
    first = (
        f"(system + {write['fold']} if loop.first and system is not none else '')"
        if folded
        else "''"
    )
    system = (
        ""
        if folded
        else f"{{% if system is not none %}}{{{{ {write['opening']} + system + {write['close']} }}}}{{% else %}}"
    )
    return (
        "{% set system = messages[0]['content'] | trim if messages and messages[0]['role'] == 'system' else none %}"
        "{% set turns = messages[1:] if system is not none else messages %}"
        f"{system}{{{{ {write['start']} }}}}"
        + ("" if folded else "{% endif %}")
        + "{% for turn in turns %}{% if turn['role'] == 'user' %}"
        f"{{{{ {write['ask']} + {first} + turn['content'] | trim + {write['asked']} }}}}"
        "{% elif turn['role'] == 'assistant' %}"
        f"{{{{ {write['answer']} + turn['content'] | trim + {write['end']} }}}}"
        "{% endif %}{% endfor %}"
        f"{{% if add_generation_prompt %}}{{{{ {write['answer']} }}}}{{% endif %}}"
    )
