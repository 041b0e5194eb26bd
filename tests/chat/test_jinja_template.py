"""With the exported Jinja template, transformers gives the tokens that tarazu trains on."""

from __future__ import annotations

import pytest
from chat import spelling

from tarazu.chat.data.chat_template import select_template
from tarazu.chat.data.conversation import Conversation, Turn
from tarazu.chat.inference import jinja_template

TURNS = (
    Turn("user", "سلام، «خوبی»؟"),
    Turn("assistant", 'درود! {{ x }} "y"\nبله'),
    Turn("user", "باز هم"),
    Turn("assistant", "باشد"),
)
CASES = {
    "llama3": (lambda: spelling.llama3(None), "llama", "llama3"),
    "gemma": (spelling.gemma, "gemma2", "gemma"),
    "chatml with its own end": (lambda: spelling.plain("<|im_end|>"), "gpt2", "chatml"),
    "chatml after a beginning-of-text token": (spelling.gemma, "mistral", "chatml"),
}


@pytest.mark.parametrize(
    "system", [(), (Turn("system", "کوتاه بنویس."),)], ids=["no system", "system"]
)
@pytest.mark.parametrize("case", CASES)
def test_the_same_tokens(case, system):
    make, family, name = CASES[case]
    tokenizer = make()
    template = select_template(tokenizer, family)
    assert template.name == name
    turns = (*system, *TURNS)
    messages = [{"role": turn.role, "content": f" {turn.text} "} for turn in turns]
    jinja = jinja_template.chat_template(template)

    def tokenize(messages, add_generation_prompt):
        return tokenizer.apply_chat_template(
            messages,
            chat_template=jinja,
            add_generation_prompt=add_generation_prompt,
            return_dict=True,
        )["input_ids"]

    assert tokenize(messages, False) == template.encode(Conversation(turns)).ids.tolist()
    assert tokenize(messages[:-1], True) == template.encode_prompt(turns[:-1])
