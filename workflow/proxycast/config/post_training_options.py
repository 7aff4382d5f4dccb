"""Options of post-training: which recipes the bases of the miniature suite are given, and how."""

from typing import Literal, get_args

from pydantic import Field, model_validator
from pydantic.fields import FieldInfo

from proxycast.options import Options, SafeName

RecipeName = Literal["sft", "sft_styles", "distillation", "rl", "dpo", "overtrained_mild", "overtrained_strong"]
RECIPES: tuple[RecipeName, ...] = get_args(RecipeName)  # each after those that it starts from
BASE = "none"  # the recipe of a base
# Recipe -> the model that it starts from; the others start from the base.
STARTS: dict[str, RecipeName] = dict.fromkeys(("rl", "dpo", "overtrained_mild", "overtrained_strong"), "sft")
# Recipe -> one that another model has first.
NEEDED = STARTS | {"distillation": "sft_styles"}


def _steps(number: int) -> FieldInfo:
    return Field(number, gt=0, description="gradient steps")


def _rate(rate: float) -> FieldInfo:
    return Field(rate, gt=0, description="learning rate of AdamW at the first step; it falls to 0 on a line")


def _documents(number: int) -> FieldInfo:
    return Field(number, gt=0, description="worked solutions that are drawn; they are read again until the last step")


def _temperature(temperature: float) -> FieldInfo:
    return Field(temperature, gt=0, description="divides the logits before a token is drawn")


class FineTuning(Options):
    """Supervised fine-tuning on worked solutions of the generator."""

    documents: int = _documents(2000)
    steps: int = _steps(120)
    learning_rate: float = _rate(1e-3)


class MildOvertraining(FineTuning):
    """Many epochs on few solutions."""

    documents: int = _documents(96)
    steps: int = _steps(60)
    learning_rate: float = _rate(2e-3)


class StrongOvertraining(FineTuning):
    """More epochs on fewer solutions, at a higher learning rate."""

    documents: int = _documents(32)
    steps: int = _steps(100)
    learning_rate: float = _rate(4e-3)


class Distillation(Options):
    """Fine-tuning on the teacher's solutions, of which only those with the right answer are kept."""

    questions: int = Field(500, gt=0, description="training questions that the teacher solves")
    samples: int = Field(4, gt=0, description="solutions that the teacher writes for each question")
    temperature: float = _temperature(0.8)
    steps: int = _steps(120)
    learning_rate: float = _rate(1e-3)


class PolicyGradient(Options):
    """Policy gradient with group-relative advantage; the reward is the exact match of the answer."""

    steps: int = _steps(40)
    questions: int = Field(16, gt=0, description="training questions of each step")
    samples: int = Field(8, gt=1, description="solutions that the model writes for each question")
    temperature: float = _temperature(1.0)
    learning_rate: float = _rate(3e-4)


class Preferences(Options):
    """Direct preference optimisation on a right and a wrong sample of each question."""

    questions: int = Field(300, gt=0, description="training questions, with one pair each")
    samples: int = Field(6, gt=1, description="solutions that the starting model writes for each question")
    temperature: float = _temperature(1.0)
    beta: float = Field(0.1, gt=0, description="how strongly the model is held to the starting model")
    steps: int = _steps(30)
    learning_rate: float = _rate(3e-4)


class PostTraining(Options):
    """Post-training of the suite's bases, on training questions of the study's tasks."""

    recipes: tuple[RecipeName, ...] = Field(
        RECIPES, min_length=1, description="what each base is made into; the base itself is always a model, too"
    )
    corpora: Literal["all"] | list[SafeName] = Field("all", description="corpora whose bases are post-trained")
    teacher: SafeName | None = Field(
        None, description="distillation: the base run whose sft_styles writes solutions, <corpus>-<size>-seed<seed>"
    )
    batch: int = Field(32, gt=0, description="solutions, or pairs of them, of one gradient step")
    sft: FineTuning = Field(FineTuning(), description="fine-tuning on solutions of one style")
    sft_styles: FineTuning = Field(FineTuning(), description="fine-tuning on solutions of all styles")
    distillation: Distillation = Field(Distillation(), description="fine-tuning on the teacher's right solutions")
    rl: PolicyGradient = Field(PolicyGradient(), description="policy gradient, from sft")
    dpo: Preferences = Field(Preferences(), description="direct preference optimisation, from sft")
    overtrained_mild: MildOvertraining = Field(MildOvertraining(), description="many epochs on few solutions, from sft")
    overtrained_strong: StrongOvertraining = Field(
        StrongOvertraining(), description="more epochs on fewer solutions at a higher rate, from sft"
    )

    @model_validator(mode="after")
    def _what_others_start_from_is_there(self) -> "PostTraining":
        for recipe in self.recipes:
            if (needed := NEEDED.get(recipe, recipe)) not in self.recipes:
                raise ValueError(f"recipes: {recipe} needs {needed}, which is missing")
        if len(set(self.recipes)) < len(self.recipes):
            raise ValueError(f"recipes: {', '.join(self.recipes)} name one recipe twice")
        if ("distillation" in self.recipes) != (self.teacher is not None):
            raise ValueError(
                f"teacher: found {self.teacher}; distillation needs one and no other recipe does, so give both or none"
            )
        return self

    @property
    def in_order(self) -> tuple[RecipeName, ...]:
        """The recipes, each after the one that it starts from."""
        return tuple(recipe for recipe in RECIPES if recipe in self.recipes)

    def post_trains(self, corpus: str) -> bool:
        """Whether bases of this corpus are post-trained."""
        return self.corpora == "all" or corpus in self.corpora
