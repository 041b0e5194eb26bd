"""The template that a model was trained with, as a Jinja chat template for other tools.

The tokenizer of a base model has no template of its own. Without this one, another tool would
prompt the tuned model in a format that it never saw.
"""

from __future__ import annotations

import json

from tarazu.chat.data.chat_template import Template

# A system message, if the conversation begins with one; the other turns.
READ_MESSAGES = (
    "{% set system = messages[0]['content'] | trim "
    "if messages and messages[0]['role'] == 'system' else none %}"
    "{% set turns = messages[1:] if system is not none else messages %}"
)


def chat_template(template: Template) -> str:
    """Jinja that renders what `template` encodes, for the roles system, user and assistant."""
    parts = template.parts
    bos = template.tokenizer.bos_token
    prefix = bos if template.add_bos and not parts.start.startswith(bos) else ""
    start = _literal(prefix + parts.start)
    user_open, user_close = _literal(parts.user_open), _literal(parts.user_close)
    assistant_open = _literal(parts.assistant_open)
    end_of_turn = _literal(parts.end_of_turn + parts.after_turn)
    if parts.system_open is None:  # the system message goes into the first user turn
        opening = f"{{{{ {start} }}}}"
        separator = _literal(parts.system_separator)
        system = f"(system + {separator} if loop.first and system is not none else '')"
    else:
        start_system = parts.start if parts.start_system is None else parts.start_system
        system_open = _literal(prefix + start_system + parts.system_open)
        system_turn = f"{{{{ {system_open} + system + {_literal(parts.system_close)} }}}}"
        opening = (
            f"{{% if system is not none %}}{system_turn}{{% else %}}{{{{ {start} }}}}{{% endif %}}"
        )
        system = "''"
    user = f"{{{{ {user_open} + {system} + turn['content'] | trim + {user_close} }}}}"
    assistant = f"{{{{ {assistant_open} + turn['content'] | trim + {end_of_turn} }}}}"
    return (
        f"{READ_MESSAGES}{opening}"
        f"{{% for turn in turns %}}{{% if turn['role'] == 'user' %}}{user}"
        f"{{% elif turn['role'] == 'assistant' %}}{assistant}{{% endif %}}{{% endfor %}}"
        f"{{% if add_generation_prompt %}}{{{{ {assistant_open} }}}}{{% endif %}}"
    )


def _literal(text: str) -> str:
    """A string literal of Jinja."""
    return json.dumps(text, ensure_ascii=False)
