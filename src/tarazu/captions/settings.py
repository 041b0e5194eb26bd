"""What a captions recipe may say: the data, the encoder and the methods, with their defaults. Imports no torch."""

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
    """A seeded split by image."""

    train: PositiveFloat = 0.8
    validation: PositiveFloat = 0.1
    test: PositiveFloat = 0.1

    @model_validator(mode="after")
    def _whole(self) -> SplitFractions:
        if abs(self.train + self.validation + self.test - 1) > 1e-6:
            raise ValueError("the shares must add up to 1")
        return self


class DataSettings(StrictModel):
    """Where the pictures and captions are and how they are read."""

    source: str = Field(
        "synthetic",
        description="a folder or zip with Flickr8k, a hub name, or `synthetic` for the project's own scenes",
    )
    captions: str | None = Field(
        None, description="the caption file, if it is not in `source` under its usual name"
    )
    split: Literal["official", "karpathy"] | SplitFractions = Field(
        SplitFractions(), description="official lists, Karpathy's JSON, or shares by image"
    )
    split_seed: int = Field(0, description="seed of a split by shares")
    max_hash_distance: NonNegativeInt = Field(
        24, description="bits of the 256 of a perceptual hash in which two near copies may differ"
    )
    min_count: PositiveInt = Field(
        3, description="a word enters the vocabulary when the training captions hold it so often"
    )
    max_length: PositiveInt = Field(
        24, description="words of a caption that are kept; shorter ones are filled with <pad>"
    )
    images: PositiveInt | None = Field(None, description="use only so many images (for trying out)")
    num_augmentations: PositiveInt = Field(
        1,
        description="views of each training picture: itself, and crops of which every second is mirrored",
    )
    captions_per_group: PositiveInt = Field(
        1,
        description="captions that stay together in every order of the rows: 5 puts all of an image's into one step, and a "
        "tuned encoder looks once for all of them",
    )
    min_crop_area: float = Field(
        0.7, gt=0.1, le=1, description="least share of a picture that a view keeps"
    )
    scenes: PositiveInt = Field(300, description="how many scenes `synthetic` draws")

    @field_validator("source")
    @classmethod
    def _current_name(cls, value: str) -> str:
        if ("source", value) in RENAMED_VALUES:
            raise ValueError(renamed_value("source", value))
        return value


class EncoderSettings(StrictModel):
    """The network that looks at the picture."""

    name: str = Field(
        "efficientnet-lite0",
        description="efficientnet-lite0, -lite1, -lite2, -b0, or google/efficientnet-b0",
    )
    file: str | None = Field(
        None,
        description="its weights: .safetensors or .pth, of transformers, torchvision, timm or lukemelas",
    )
    padding: Literal["auto", "same", "symmetric"] = Field(
        "auto", description="symmetric for torchvision's and timm's own B0; auto tells by the file"
    )
    size: PositiveInt | None = Field(
        None, description="side of the input, if not the encoder's own"
    )
    precision: Literal["float16", "float32"] = Field(
        "float16", description="of the cached features"
    )


class FineTune(StrictModel):
    """Chosen encoder blocks are trained as well, once the decoder has settled; for some epochs, or to the end."""

    blocks: PositiveInt = Field(
        4,
        description="how many of the last blocks (the final convolution is one more, always included)",
    )
    learning_rate: PositiveFloat = 3e-5
    from_epoch: NonNegativeInt = 5
    until_epoch: PositiveInt | None = Field(
        None,
        description="from this epoch on the encoder stands still again, as the best weights so far have it; what it sees is "
        "kept, and an epoch takes no longer than with a frozen one",
    )
    decoder_rate: PositiveFloat = Field(
        5e-5,
        description="highest rate of the decoder after `until_epoch`, where the schedule begins anew",
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
    """Late epochs trained on the CIDEr of the model's own samples (Rennie et al. 2017; baseline of Luo 2020).

    With a rate of their own they begin from the best weights so far, where `budget.keep` is best."""

    from_epoch: NonNegativeInt = 15
    learning_rate: PositiveFloat | None = Field(
        None,
        description="highest rate of these epochs, in which the schedule begins anew; null: it goes on as it was",
    )
    samples: Annotated[int, Field(ge=2)] = 5
    sample_fraction: float = Field(
        0.25,
        gt=0,
        le=1,
        description="of a step's rows that are sampled for: an image comes five times in an epoch",
    )
    likelihood: NonNegativeFloat = Field(
        0.0, description="weight of the likelihood that stays beside the reward"
    )
    dropout: bool = Field(
        False,
        description="sentences are drawn without dropout, and learnt from with it, like people's captions",
    )
    bleu: NonNegativeFloat = Field(
        0.0,
        description="weight of a sentence's BLEU-4 (0..1) beside its CIDEr (0..10, mostly below 1) in the reward",
    )


class CaptionMethod(Method):
    """What every decoder's settings have: its size and the measures against overfitting."""

    learning_rate: PositiveFloat = 4e-4
    hidden_size: PositiveInt = 512
    dropout: Probability = 0.5
    word_dropout: Probability = Field(
        0.0, description="chance that an input word is hidden as <unk>"
    )
    feature_dropout: Probability = Field(
        0.0,
        description="chance that a channel of the encoder's map is hidden, at all places and for all words",
    )
    label_smoothing: Probability = 0.0
    tie_embeddings: bool = Field(
        False,
        description="the output layer shares the word embedding; the LSTMs' states are narrowed to its width",
    )
    scheduled_sampling: Probability = Field(
        0.0,
        description="highest share of input words taken from the model itself; grows over the run",
    )
    fast: bool = Field(
        True,
        description="the same sums in fewer and larger steps; false is the plain path that tests compare it with",
    )
    captions_per_group: PositiveInt | None = Field(
        None,
        description="this method's own `data.captions_per_group`: a frozen encoder gains nothing by it, and learns more from steps of many pictures",
    )
    fine_tune: FineTune | None = None
    self_critical: SelfCritical | None = None


class ShowAndTell(CaptionMethod):
    """Vinyals et al. 2015: one image vector, an LSTM that writes."""

    kind: Literal["show_and_tell"] = "show_and_tell"
    embedding: PositiveInt = 512
    image_as: Literal["state", "word", "both"] = Field(
        "state",
        description="the image sets the LSTM's first state, is its first input (the paper), or both",
    )
    num_layers: PositiveInt = 1


class ShowAttendTell(CaptionMethod):
    """Xu et al. 2015: an LSTM that looks at the 7x7 map anew for every word."""

    kind: Literal["show_attend_tell"] = "show_attend_tell"
    embedding: PositiveInt = 512
    attention: PositiveInt = Field(512, description="width of f(W_h h, W_a a)")
    project: PositiveInt | None = Field(
        None, description="width of an optional Linear and ReLU on the map, before all else"
    )
    gate: bool = Field(True, description="the beta gate on the context")
    mix: PositiveInt | None = Field(
        None, description="width of an optional Linear on [z; embedding]"
    )
    deep_output: bool = Field(
        True,
        description="words from h, z and the previous word together, as in the paper; "
        "with tie_embeddings without the previous word, which would vote for itself",
    )
    doubly_stochastic: NonNegativeFloat = Field(
        0.25, description="weight of sum_i (1 - sum_t alpha_ti)^2"
    )


class Transformer(CaptionMethod):
    """A Transformer decoder over the map (Vaswani et al. 2017)."""

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
    """Several trained methods that write together: their log-probabilities are averaged at every word. Nothing is
    trained."""

    kind: Literal["ensemble"] = "ensemble"
    members: list[str] = Field(
        min_length=2, description="methods of this recipe, as NAME (the same seed) or NAME/seed-N"
    )
    flip_tta: bool = Field(
        False, description="every member also looks at the mirrored picture, and has a second voice"
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
        [], description="beam widths that are scored besides greedy and beam 3"
    )
    length_penalty: NonNegativeFloat = Field(
        1.0, description="beam scores are divided by length to this power"
    )
    early_stopping: Literal["full", "ahead"] = Field(
        "full",
        description="a beam search ends when as many sentences have ended as it is wide, or when besides no living one is "
        "ahead of them (longer captions)",
    )
    block_trigrams: bool = Field(False, description="no three words twice in one caption")
    methods: dict[str, AnyMethod]

    @field_validator("encoder", mode="before")
    @classmethod
    def _short(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _members(self) -> CaptionsRecipe:
        names = list(self.methods)
        for place, (name, method) in enumerate(self.methods.items()):
            for member in getattr(method, "members", []):
                if member.partition("/")[0] not in names[:place]:
                    raise ValueError(
                        f"the ensemble {name!r} needs {member!r}, which must be a method above it"
                    )
        return self
