"""Building the model of a recipe's method, new or with trained weights."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import partial

import torch

from tarazu.captions.data.vocabulary import Vocabulary
from tarazu.captions.dataset import CaptionData
from tarazu.captions.decoding.ensemble import Ensemble
from tarazu.captions.decoding.horizontal_flip import HorizontalFlip
from tarazu.captions.encoder.pretrained import Pretrained
from tarazu.captions.model.captioning_model import ImageCaptioningModel
from tarazu.captions.model.decoders import make_decoder
from tarazu.captions.settings import CaptionMethod, CaptionsRecipe
from tarazu.captions.trainable import (
    TrainableCaptioner,
    cross_entropy_tensors,
    self_critical_tensors,
)
from tarazu.engine import weights
from tarazu.engine.cuda_graphs.recorder import GraphedFunction
from tarazu.engine.trainable import ParameterGroup, TrainingPhase
from tarazu.errors import UserError
from tarazu.storage.run_folder import StudyDir

MIN_CALLS = 3  # before a shape is captured: an epoch's last batch may be the only one of its size


def make_trainable(
    recipe: CaptionsRecipe,
    name: str,
    encoder: Pretrained,
    vocabulary: Vocabulary,
    seed: int,
    data: CaptionData | None = None,
) -> TrainableCaptioner:
    """Build a method, newly initialised on the CPU.

    Args:
        recipe: the recipe.
        name: the method, which is not an ensemble.
        encoder: the pretrained encoder, of which the model gets a copy.
        vocabulary: the vocabulary.
        seed: of the decoder's initialisation.
        data: the prepared data; needed for training.

    Raises:
        UserError: the encoder has fewer blocks than are to be fine-tuned.
    """
    method = recipe.methods[name]
    encoder = replace(encoder, module=copy.deepcopy(encoder.module))
    torch.manual_seed(seed)
    model = make_model(method, encoder, len(vocabulary))
    trainable_names = {f"decoder.{key}" for key, _ in model.decoder.named_parameters()}
    groups = _encoder_group(method, encoder)
    for group in groups:
        trainable_names |= group.names
    for key, parameter in model.named_parameters():
        parameter.requires_grad_(key in trainable_names)
    trainable = TrainableCaptioner(
        model,
        frozenset(trainable_names),
        method.learning_rate,
        groups,
        _phases(method),
        method=method,
        data=data,
        encoder_tuned=bool(groups),
        pooled=model.decoder.input_kind == "pooled",
    )
    # Scheduled sampling replaces more tokens at every step, which a captured graph could not.
    if method.fast and not method.scheduled_sampling:
        work = partial(cross_entropy_tensors, model, method)
        trainable.graphed_loss = GraphedFunction(work, model, MIN_CALLS)
    if method.fast and method.self_critical and data is not None:
        work = partial(self_critical_tensors, trainable)
        trainable.graphed_scst = GraphedFunction(work, model, MIN_CALLS)
    return trainable


def make_model(method: CaptionMethod, encoder: Pretrained, vocab_size: int) -> ImageCaptioningModel:
    """Build the module of a method; torch's random state initialises the decoder."""
    decoder = make_decoder(method, vocab_size, encoder.module.width, encoder.grid_size**2)
    bfloat16 = method.fine_tune is not None and method.fine_tune.precision == "bfloat16"
    return ImageCaptioningModel(encoder.module, decoder, method.feature_dropout, bfloat16)


def make_trained(
    recipe: CaptionsRecipe,
    study: StudyDir,
    name: str,
    seed: int,
    encoder: Pretrained,
    vocabulary: Vocabulary,
    data: CaptionData | None = None,
) -> TrainableCaptioner:
    """Build a method of a study with its trained weights, on the CPU.

    Args:
        recipe: the study's recipe.
        study: the study.
        name: the method; an ensemble is built from the runs of its members.
        seed: the run's seed.
        encoder: the pretrained encoder.
        vocabulary: the vocabulary.
        data: the prepared data; needed for evaluation.

    Raises:
        UserError: a run has no weights yet.
    """
    method = recipe.methods.get(name)  # None for a member that was not selected
    if method and method.kind == "ensemble":
        members = []
        for member in method.members:  # NAME, or NAME/seed-N
            member_name, _, suffix = member.partition("/seed-")
            member_seed = int(suffix) if suffix else seed
            members.append(
                make_trained(recipe, study, member_name, member_seed, encoder, vocabulary, data)
            )
        return make_ensemble(members, data, method.flip_tta)
    run = study.run(name, seed)
    if not run.weights.exists():
        raise UserError(
            "this run has no weights yet",
            location=str(run.path),
            hint="train it with `tarazu run` or `tarazu resume`; in a recipe, place the members of "
            "an ensemble above it",
        )
    trainable = make_trainable(recipe, name, encoder, vocabulary, seed, data)
    weights.restore(trainable, weights.read(run))
    return trainable


def make_ensemble(
    members: list[TrainableCaptioner], data: CaptionData | None, flip_tta: bool = False
) -> TrainableCaptioner:
    """Combine trained members into one model that is not trained.

    Args:
        members: the trained models.
        data: the prepared data; needed for evaluation.
        flip_tta: add every member once more, on mirrored images; this needs pixels.
    """
    modules = [member.module for member in members]
    flipped = [HorizontalFlip(module) for module in modules] if flip_tta else []
    ensemble = Ensemble([*modules, *flipped])
    ensemble.requires_grad_(False)
    return TrainableCaptioner(
        ensemble,
        frozenset(),
        data=data,
        encoder_tuned=flip_tta or any(member.encoder_tuned for member in members),
        pooled=all(member.pooled for member in members),
    )


def _encoder_group(method: CaptionMethod, encoder: Pretrained) -> list[ParameterGroup]:
    """The encoder's fine-tuned parameters as a group; none for a frozen encoder."""
    fine_tune = method.fine_tune
    if not fine_tune:
        return []
    try:
        names = encoder.module.last_blocks(fine_tune.blocks)
    except ValueError as error:
        raise UserError(str(error), location="fine_tune.blocks", hint="fewer blocks") from None
    return [
        ParameterGroup(
            frozenset(f"encoder.{name}" for name in names),
            fine_tune.learning_rate,
            fine_tune.from_epoch,
            fine_tune.until_epoch,
        )
    ]


def _phases(method: CaptionMethod) -> list[TrainingPhase]:
    """The parts of a run with a learning rate of their own; each starts from the best weights.

    One starts where the encoder is frozen again, one where self-critical training begins.
    """
    rates: dict[int, float] = {}  # by first epoch
    if method.fine_tune and method.fine_tune.until_epoch:
        rates[method.fine_tune.until_epoch] = method.fine_tune.decoder_rate
    if method.self_critical and method.self_critical.learning_rate:
        rates[method.self_critical.from_epoch] = method.self_critical.learning_rate
    return [
        TrainingPhase(epoch, rate / method.learning_rate, from_best=True)
        for epoch, rate in sorted(rates.items())
    ]
