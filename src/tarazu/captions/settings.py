"""The keys of a captions recipe: data, encoder and methods. Imports no torch."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

from tarazu.recipe.messages import RENAMED_VALUES, renamed_value
from tarazu.recipe.schema import Method, Recipe, StrictModel

Probability = Annotated[float, Field(ge=0, lt=1)]


class SplitFractions(StrictModel):
    """Fractions of the images by split."""

    train: PositiveFloat = 0.8
    validation: PositiveFloat = 0.1
    test: PositiveFloat = 0.1

    @model_validator(mode="after")
    def _add_up_to_one(self) -> SplitFractions:
        if abs(self.train + self.validation + self.test - 1) > 1e-6:
            raise ValueError("the fractions must add up to 1")
        return self


class DataSettings(StrictModel):
    """Where the images and captions are, and how they are prepared."""

    source: str = Field(
        "synthetic",
        description="a folder or zip with Flickr8k, a name on the Hugging Face Hub, or "
        "`synthetic` for scenes that the project draws",
    )
    captions: str | None = Field(
        None, description="the caption file, if it is not in `source` under its usual name"
    )
    split: Literal["official", "karpathy"] | SplitFractions = Field(
        SplitFractions(), description="official lists, Karpathy's JSON, or fractions by image"
    )
    split_seed: int = Field(0, description="seed of a split by fractions")
    max_hash_distance: NonNegativeInt = Field(
        24,
        description="two images are near duplicates when at most so many bits of their 256-bit "
        "perceptual hashes differ",
    )
    min_count: PositiveInt = Field(
        3, description="how often the training captions must have a word of the vocabulary"
    )
    max_length: PositiveInt = Field(
        24, description="most words of a caption; a longer one is truncated, a shorter one padded"
    )
    images: PositiveInt | None = Field(
        None, description="use only so many images, for a quick trial"
    )
    num_augmentations: PositiveInt = Field(
        1,
        description="views of each training image: the image itself, then random crops, every "
        "second one mirrored",
    )
    captions_per_group: PositiveInt = Field(
        1,
        description="consecutive captions that always share a step. 5 puts all captions of an "
        "image into one step, and a fine-tuned encoder encodes the image once for them",
    )
    min_crop_area: float = Field(
        0.7, gt=0.1, le=1, description="smallest fraction of an image's area that a crop keeps"
    )
    scenes: PositiveInt = Field(300, description="how many scenes the source `synthetic` has")

    @field_validator("source")
    @classmethod
    def _current_name(cls, value: str) -> str:
        if ("source", value) in RENAMED_VALUES:
            raise ValueError(renamed_value("source", value))
        return value


class EncoderSettings(StrictModel):
    """The pretrained network that encodes the images."""

    name: str = Field(
        "efficientnet-lite0",
        description="efficientnet-lite0, -lite1, -lite2, -b0, or google/efficientnet-b0",
    )
    file: str | None = Field(
        None,
        description="its weights: .safetensors or .pth, with the tensor names of transformers, "
        "torchvision, timm or lukemelas",
    )
    padding: Literal["auto", "same", "symmetric"] = Field(
        "auto",
        description="symmetric for weights of torchvision and timm; auto decides by the file",
    )
    size: PositiveInt | None = Field(
        None, description="side of the square input in pixels; null: as the encoder was trained"
    )
    precision: Literal["float16", "float32"] = Field(
        "float16", description="of the cached features"
    )


class FineTune(StrictModel):
    """Train the last encoder blocks as well, between two epochs or from one to the end."""

    blocks: PositiveInt = Field(
        4,
        description="how many of the last blocks; the final convolution is always trained too",
    )
    learning_rate: PositiveFloat = Field(3e-5, description="highest rate of the encoder")
    from_epoch: NonNegativeInt = Field(5, description="first epoch in which the encoder is trained")
    until_epoch: PositiveInt | None = Field(
        None,
        description="from this epoch on the encoder is frozen again, with the best weights so "
        "far. Its features are computed once, so an epoch takes as long as with a frozen encoder",
    )
    decoder_rate: PositiveFloat = Field(
        5e-5,
        description="highest rate of the decoder from `until_epoch` on, where the schedule "
        "restarts",
    )
    precision: Literal["float32", "bfloat16"] = Field(
        "float32", description="of the encoder on a GPU; the decoder follows budget.precision"
    )

    @model_validator(mode="after")
    def _in_order(self) -> FineTune:
        if self.until_epoch is not None and self.until_epoch <= self.from_epoch:
            raise ValueError("until_epoch must come after from_epoch")
        return self


class SelfCritical(StrictModel):
    """Self-critical training: late epochs maximize the CIDEr of the model's own samples.

    Rennie et al. 2017, with the baseline of Luo 2020. With a learning rate of their own these
    epochs start from the best weights so far, where `budget.keep` is best.
    """

    from_epoch: NonNegativeInt = Field(15, description="first epoch of self-critical training")
    learning_rate: PositiveFloat | None = Field(
        None,
        description="highest rate of these epochs, for which the schedule restarts; null: the "
        "schedule continues",
    )
    samples: int = Field(5, ge=2, description="sampled captions per row")
    sample_fraction: float = Field(
        0.25,
        gt=0,
        le=1,
        description="fraction of a step's rows that captions are sampled for; with five "
        "captions an image occurs five times in an epoch",
    )
    likelihood: NonNegativeFloat = Field(
        0.0, description="weight of the cross-entropy loss that is added to the reward's loss"
    )
    dropout: bool = Field(
        False,
        description="compute the loss of the samples with dropout; they are sampled without it",
    )
    bleu: NonNegativeFloat = Field(
        0.0,
        description="weight of a caption's BLEU-4 (0..1) in the reward, next to its CIDEr "
        "(0..10, mostly below 1)",
    )


class CaptionMethod(Method):
    """Settings of every decoder: its size and the measures against overfitting."""

    learning_rate: PositiveFloat = 4e-4
    hidden_size: PositiveInt = 512
    dropout: Probability = 0.5
    word_dropout: Probability = Field(
        0.0, description="probability that an input word becomes <unk>"
    )
    feature_dropout: Probability = Field(
        0.0,
        description="probability that a channel of the feature map is zeroed, at all positions "
        "and for all words",
    )
    label_smoothing: Probability = 0.0
    tie_embeddings: bool = Field(
        False,
        description="share the word embedding with the output layer; an LSTM's state is "
        "projected to its width",
    )
    scheduled_sampling: Probability = Field(
        0.0,
        description="fraction of input words that are the model's own at the end of the run; it "
        "grows from 0",
    )
    fast: bool = Field(
        True,
        description="use the faster equivalent computation; false is the plain path that tests "
        "compare it with",
    )
    captions_per_group: PositiveInt | None = Field(
        None,
        description="this method's own `data.captions_per_group`. 1 suits a frozen encoder: a "
        "step then has captions of many images",
    )
    fine_tune: FineTune | None = None
    self_critical: SelfCritical | None = None


class ShowAndTell(CaptionMethod):
    """Show and Tell (Vinyals et al. 2015): an LSTM that starts from one image vector."""

    kind: Literal["show_and_tell"] = "show_and_tell"
    embedding: PositiveInt = 512
    image_as: Literal["state", "word", "both"] = Field(
        "state",
        description="the image gives the LSTM's first state, its first input (as in the paper), "
        "or both",
    )
    num_layers: PositiveInt = 1


class ShowAttendTell(CaptionMethod):
    """Show, Attend and Tell (Xu et al. 2015): an LSTM with attention over the 7x7 feature map."""

    kind: Literal["show_attend_tell"] = "show_attend_tell"
    embedding: PositiveInt = 512
    attention: PositiveInt = Field(512, description="width of f(W_h h, W_a a)")
    project: PositiveInt | None = Field(
        None, description="width of an optional Linear and ReLU on the feature map"
    )
    gate: bool = Field(True, description="use the gate beta on the context vector")
    mix: PositiveInt | None = Field(
        None, description="width of an optional Linear on [z; embedding]"
    )
    deep_output: bool = Field(
        True,
        description="compute logits from h, z and the previous word, as in the paper; with "
        "tie_embeddings without the previous word, whose own logit would rise",
    )
    doubly_stochastic: NonNegativeFloat = Field(
        0.25, description="weight of sum_i (1 - sum_t alpha_ti)^2"
    )


class Transformer(CaptionMethod):
    """A Transformer decoder (Vaswani et al. 2017) with cross-attention over the feature map."""

    kind: Literal["transformer"] = "transformer"
    dropout: Probability = 0.2
    num_layers: PositiveInt = 3
    heads: PositiveInt = 8
    feed_forward: PositiveInt = 2048
    positions: Literal["learned", "sinusoidal"] = "learned"

    @model_validator(mode="after")
    def _divides(self) -> Transformer:
        if self.hidden_size % self.heads:
            raise ValueError(
                f"hidden_size ({self.hidden_size}) must be a multiple of heads ({self.heads})"
            )
        return self


class Ensemble(Method):
    """Trained methods that decode together: each word's log-probabilities are averaged."""

    kind: Literal["ensemble"] = "ensemble"
    members: list[str] = Field(
        min_length=2, description="methods of this recipe, as NAME (the same seed) or NAME/seed-N"
    )
    flip_tta: bool = Field(
        False, description="test-time augmentation: every member also votes on the mirrored image"
    )


AnyMethod = Annotated[
    ShowAndTell | ShowAttendTell | Transformer | Ensemble, Field(discriminator="kind")
]


class CaptionsRecipe(Recipe):
    """A recipe with `task: captions`."""

    task: Literal["captions"] = "captions"
    data: DataSettings = DataSettings()
    encoder: EncoderSettings = EncoderSettings()
    extra_beams: list[PositiveInt] = Field(
        [], description="beam widths to score in addition to greedy and beam 3"
    )
    length_penalty: NonNegativeFloat = Field(
        1.0, description="a beam's score is divided by its length to this power"
    )
    early_stopping: Literal["full", "ahead"] = Field(
        "full",
        description="full: beam search stops when as many captions have ended as the beam is wide. "
        "ahead: it continues while an unfinished one has a better score (longer captions)",
    )
    block_trigrams: bool = Field(
        False, description="allow no three-word sequence twice in a caption"
    )
    methods: dict[str, AnyMethod]

    @field_validator("encoder", mode="before")
    @classmethod
    def _name_alone(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _members(self) -> CaptionsRecipe:
        names = list(self.methods)
        for position, (name, method) in enumerate(self.methods.items()):
            for member in getattr(method, "members", []):
                if member.partition("/")[0] not in names[:position]:
                    raise ValueError(
                        f"the ensemble {name!r} needs {member!r}, which must be a method above it"
                    )
        return self
