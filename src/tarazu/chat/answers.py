"""Answers of every method: to designed questions, test rows and reading-comprehension passages."""

from __future__ import annotations

from typing import Any

from tarazu.chat.data import chat_template
from tarazu.chat.data.persian import english_fraction
from tarazu.chat.evaluation import generation, questions, reading_comprehension, text_metrics
from tarazu.chat.model.trainable import TrainableChatModel
from tarazu.chat.prepared_data import ChatData
from tarazu.chat.settings import ChatRecipe

Sample = dict[str, Any]


def evaluation_prompts(data: ChatData, recipe: ChatRecipe) -> list[Sample]:
    """The prompts of the final evaluation: designed questions, then test rows.

    A test row is shown up to its last answer, which is the reference.
    """
    prompts = [question.sample() for question in data.questions]
    for i in range(min(recipe.generation.num_test_answers, data.size("test"))):
        turns = data.store.conversation("test", i)
        last = max(j for j, turn in enumerate(turns) if turn.role == "assistant")
        prompts.append(
            {
                "id": f"test-{i:04d}",
                "from": "test",
                "ability": None,
                "turns": [{"role": turn.role, "text": turn.text} for turn in turns[:last]],
                "reference": turns[last].text,
                "good": None,
            }
        )
    return prompts


def validation_prompts(data: ChatData, recipe: ChatRecipe) -> list[Sample]:
    """The designed questions that are answered at every validation."""
    designed = [p for p in evaluation_prompts(data, recipe) if p["from"] == "questions"]
    return designed[: recipe.generation.samples_per_validation]


def answer(
    trainable: TrainableChatModel,
    data: ChatData,
    recipe: ChatRecipe,
    prompts: list[Sample],
    max_new_tokens: int | None = None,
) -> list[Sample]:
    """Answer the prompts, then check and score the answers.

    Args:
        trainable: the model, in eval mode.
        data: the prepared data.
        recipe: the recipe; its generation settings are used.
        prompts: samples with `turns`.
        max_new_tokens: length limit of an answer; None: the recipe's.

    Returns:
        The prompts with `output`, `finished`, `tokens`, `checks` and `scores`.
    """
    if not prompts:
        return []
    settings = recipe.generation
    answers = generation.generate(
        trainable,
        [data.template.encode_prompt(turns_of(prompt)) for prompt in prompts],
        set(data.template.stop_ids),
        max_new_tokens or settings.max_new_tokens,
        settings.batch_rows,
    )
    by_id = {question.id: question for question in data.questions}
    return [
        _scored(data, prompt, result, by_id.get(prompt["id"]))
        for prompt, result in zip(prompts, answers, strict=True)
    ]


def turns_of(prompt: Sample) -> list[chat_template.Turn]:
    """The turns of a sample."""
    return [chat_template.Turn(turn["role"], turn["text"]) for turn in prompt["turns"]]


def _scored(
    data: ChatData,
    prompt: Sample,
    answer: generation.Answer,
    question: questions.Question | None,
) -> Sample:
    """The sample with its decoded answer, checks and scores."""
    text = data.tokenizer.decode(answer.ids, skip_special_tokens=True).strip()
    if question is not None:
        script = questions.expected_script(question)
    else:
        script = "en" if english_fraction(prompt["reference"]) > 0.5 else "fa"
    asked = prompt["turns"][-1]["text"]
    return {
        **prompt,
        "output": text,
        "finished": answer.finished,
        "tokens": len(answer.ids),
        "checks": questions.check(question, text) if question is not None else {},
        "scores": text_metrics.score(text, asked, prompt["reference"], script),
    }


def answer_reading(
    trainable: TrainableChatModel, data: ChatData, recipe: ChatRecipe
) -> list[Sample]:
    """Answer the reading-comprehension questions, with exact match and F1 among the scores."""
    if not data.reading:
        return []
    limit = recipe.reading.max_new_tokens
    samples = answer(trainable, data, recipe, data.reading, limit)
    for sample in samples:
        sample["scores"] |= reading_comprehension.score(
            sample["output"], sample["reference"], recipe.reading.unanswerable
        )
    return samples
