"""Recipes: which of several settings counts, how a learning rate is carried over by width, and published figures as published."""

import math
from dataclasses import fields, replace
from itertools import product

import pytest

from rankwise.config import DataOptions, LoraOptions, ModelOptions, RunConfig, TrainOptions
from rankwise.errors import RankwiseError
from rankwise.runs import recipes
from rankwise.runs.recipes import NAMES, published, published_notes, recipe, resolve, resolve_lr
from rankwise.tasks.registry import TASKS


@pytest.fixture
def planted(monkeypatch):
    """A recipe that says something else at every level."""
    data = {
        "model": "roberta-base",
        "defaults": {
            "epochs": 1, "batch_size": 8, "optimizer": "adam", "schedule": "linear",
            "warmup": 0.1, "weight_decay": 0.0, "clip": 1.0, "padding": "longest", "max_length": 64,
        },
        "methods": {"lora": {"epochs": 2, "batch_size": 16}},
        "tasks": {"sst2": {"lora": {"epochs": 3, "lr": 1e-3}}},
        "lr_by_width": {"lora": {"256": 4e-3, "512": 1e-3, "1024": 5e-4}, "full": {"768": 2e-5}},
    }  # fmt: skip
    monkeypatch.setattr(recipes, "_read", lambda name: data)
    return RunConfig(task="sst2", method="lora", train=TrainOptions(recipe="rankwise"))


# Which setting counts


def test_what_is_asked_for_wins_over_the_recipe(planted):
    asked = replace(
        planted,
        train=TrainOptions(epochs=9.0, clip=0.0),
        data=DataOptions(max_length=33),
        model=ModelOptions(model="bert-base-uncased"),
    )
    found = resolve(asked, "lora")
    assert (found.train.epochs, found.train.clip) == (9.0, 0.0)
    assert found.data.max_length == 33
    assert found.model.model == "bert-base-uncased"


def test_the_recipes_least_warm_up_counts_only_with_its_share():
    def warmup_steps(**asked):
        return resolve(RunConfig(task="sst2", train=TrainOptions(**asked)), "lora").train.warmup_steps

    assert warmup_steps() == 50
    assert warmup_steps(warmup=0.0) is None
    assert warmup_steps(warmup=0.0, warmup_steps=7) == warmup_steps(warmup_steps=7) == 7


def test_a_tasks_setting_wins_over_the_methods_and_that_over_the_default(planted):
    found = resolve(planted, "lora")
    assert (found.train.epochs, found.train.lr) == (3, 1e-3)  # task and method
    assert found.train.batch_size == 16  # method
    assert (found.train.optimizer, found.data.max_length) == ("adam", 64)  # default
    assert found.model.model == "roberta-base"


def test_a_method_takes_anothers_settings_unless_it_has_its_own(planted):
    recipe("rankwise")["methods"]["adaptive"] = {"epochs": 5, "schedule": "two-phase"}
    found = resolve(replace(planted, task="rte"), "adaptive").train
    assert (found.epochs, found.batch_size, found.schedule) == (5, 16, "two-phase")
    assert resolve(replace(planted, task="rte"), "lora").train.schedule == "linear"
    assert resolve(planted, "adaptive").train.epochs == 3  # a task's setting wins


def test_another_tasks_or_methods_settings_do_not_count(planted):
    other_task = resolve(replace(planted, task="rte"), "lora")
    assert (other_task.train.epochs, other_task.train.lr) == (2, None)
    other_method = resolve(replace(planted, method="full"), "full")
    assert (other_method.train.epochs, other_method.train.batch_size) == (1, 8)


def test_resolving_twice_changes_nothing(planted):
    once = resolve(planted, "lora")
    assert resolve(once, "lora") == once


def test_a_recipe_without_epochs_for_a_task_says_to_give_them():
    config = RunConfig(task="movies", train=TrainOptions(recipe="lora-paper", lr=1e-3))
    with pytest.raises(RankwiseError, match=r"'lora-paper' has no epochs for lora on movies\. .*`epochs=`"):
        resolve(config, "lora")
    found = resolve(replace(config, train=replace(config.train, epochs=2.0)), "lora")
    assert (found.train.epochs, found.train.batch_size) == (2.0, 16)


NOT_IN_THE_PAPER = [("lora-paper", task) for task in ("movies", "wnli", "e2e", "gsm8k")]
NOT_IN_THE_PAPER += [
    ("lora-paper-e2e", task) for task in TASKS
]  # it has a learning rate for one method on one task


@pytest.mark.parametrize(
    ("name", "task"), [cell for cell in product(NAMES, TASKS) if cell not in NOT_IN_THE_PAPER]
)
@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_recipe_decides_everything_for_the_tasks_it_is_for(name, task, method):
    config = resolve(RunConfig(task=task, train=TrainOptions(recipe=name)), method)
    open_settings = {f.name for f in fields(TrainOptions) if getattr(config.train, f.name) is None}
    assert open_settings - {"lr", "warmup_steps"} == {
        "class_weights",
        "evaluate_every",
        "patience",
        "completion_only_loss",
        "assistant_only_loss",
    }
    assert 0 < resolve_lr(config, method, 768).value < 0.01


def test_every_setting_in_a_recipe_is_one_that_there_is():
    known = {f.name for f in fields(TrainOptions)} | {"max_length"}
    for name in NAMES:
        data = recipe(name)
        tables = [data["defaults"], *data.get("methods", {}).values()]
        tables += [table for task in data.get("tasks", {}).values() for table in task.values()]
        assert all(table.keys() <= known for table in tables)
        assert data.get("tasks", {}).keys() <= TASKS.keys()


@pytest.mark.parametrize(
    ("asked", "guess"), [("lora_paper", "lora-paper"), ("postr", "poster"), ("published", "")]
)
def test_an_unknown_recipe_is_refused_with_the_nearest(asked, guess):
    with pytest.raises(
        RankwiseError,
        match=f"There is no recipe '{asked}'.*Known: lora-paper, lora-paper-e2e, poster, rankwise",
    ) as said:
        resolve(RunConfig(train=TrainOptions(recipe=asked)), "lora")
    assert (f"Did you mean '{guess}'?" in str(said.value)) == bool(guess)


# Learning rates


def test_a_learning_rate_as_given_counts(planted):
    found = resolve_lr(replace(planted, train=TrainOptions(lr=0.3)), "lora", 512)
    assert (found.value, found.why) == (0.3, "as given")


def test_a_width_of_the_recipe_has_its_own_learning_rate(planted):
    found = resolve_lr(planted, "lora", 512)
    assert found.value == 1e-3
    assert found.why == "recipe 'rankwise', lora at width 512"


@pytest.mark.parametrize(
    ("width", "lr"),
    [
        (362, 2e-3),  # half way from 256 to 512 in the logarithm: √(4e-3 · 1e-3)
        (724, math.sqrt(1e-3 * 5e-4)),
    ],
)
def test_between_widths_learning_rates_are_interpolated_in_log_log(planted, width, lr):
    found = resolve_lr(planted, "lora", width)
    assert found.value == pytest.approx(lr, rel=0.005)
    assert found.why.endswith("carried over by width")


@pytest.mark.parametrize(("width", "lr", "near"), [(32, 4e-3, 256), (4096, 5e-4, 1024)])
def test_beyond_known_widths_the_nearest_widths_rate_is_taken_with_a_note(planted, width, lr, near):
    found = resolve_lr(planted, "lora", width)
    assert found.value == lr
    assert f"at width {near}, the nearest width there is a rate for; this model's is {width}" in found.why


def test_a_single_known_width_gives_its_learning_rate_to_every_width(planted):
    assert resolve_lr(planted, "full", 100).value == resolve_lr(planted, "full", 768).value == 2e-5


@pytest.mark.parametrize("method", ["lora", "peft:lora", "peft:dora"])
def test_all_linear_layers_take_the_rate_of_adaptive_which_starts_there(method):
    inside, everywhere = (
        RunConfig(lora=LoraOptions(targets=targets), train=TrainOptions(recipe="rankwise"))
        for targets in ((), ("all-linear",))
    )
    assert resolve_lr(inside, method, 384).value == 2e-3
    assert resolve_lr(everywhere, method, 384) == resolve_lr(inside, "adaptive", 384)


def test_a_method_without_a_learning_rate_says_to_give_one(planted):
    with pytest.raises(RankwiseError, match=r"no learning rate for peft:loha on sst2\. Give one with `lr=`"):
        resolve_lr(planted, "peft:loha", 768)


# What was published


@pytest.mark.parametrize(
    ("name", "method", "task", "settings"),
    [
        ("lora-paper", "lora", "mnli", {"lr": 5e-4, "epochs": 30, "batch_size": 128}),
        ("lora-paper", "lora", "sst2", {"lr": 5e-4, "epochs": 60, "batch_size": 16}),
        ("lora-paper", "lora", "mrpc", {"lr": 4e-4, "epochs": 30, "batch_size": 16}),
        ("lora-paper", "lora", "qnli", {"lr": 4e-4, "epochs": 25, "batch_size": 32}),
        ("lora-paper", "lora", "qqp", {"lr": 5e-4, "epochs": 25, "batch_size": 16}),
        ("lora-paper", "lora", "rte", {"lr": 5e-4, "epochs": 80, "batch_size": 32}),
        ("lora-paper", "lora", "rte", {"weight_decay": 0.1, "warmup": 0.06, "schedule": "linear", "optimizer": "adamw"}),
        ("poster", "lora", "qqp", {"batch_size": 16, "optimizer": "adam", "padding": "max_length"}),
        ("poster", "full", "qqp", {"batch_size": 16, "optimizer": "adam", "padding": "max_length"}),
    ],
)  # fmt: skip
def test_a_published_recipe_has_the_settings_of_its_source(name, method, task, settings):
    config = resolve(RunConfig(task=task, train=TrainOptions(recipe=name)), method)
    assert {key: getattr(config.train, key) for key in settings} == settings
    assert config.model.model == "roberta-base"


def test_gpt_2_on_e2e_has_the_settings_of_the_papers_script():
    """https://github.com/microsoft/LoRA/blob/main/examples/NLG/README.md"""
    config = resolve(RunConfig(task="e2e", train=TrainOptions(recipe="lora-paper-e2e")), "lora")
    script = {
        "lr": 2e-4, "epochs": 5, "batch_size": 8, "optimizer": "adamw", "beta2": 0.999, "schedule": "linear",
        "warmup": 0.0, "warmup_steps": 500, "weight_decay": 0.01, "clip": 0.0,
    }  # fmt: skip
    assert {key: getattr(config.train, key) for key in script} == script
    assert (config.model.model, config.data.max_length) == ("gpt2-medium", 512)


def test_the_papers_rows_are_cut_at_512_tokens():
    assert (
        resolve(RunConfig(task="rte", train=TrainOptions(recipe="lora-paper")), "lora").data.max_length == 512
    )


@pytest.mark.parametrize(
    ("model", "task", "method", "source", "settings", "score"),
    [
        ("roberta-base", "mnli", "full", "poster", "", 0.8611),
        ("roberta-base", "qqp", "lora", "poster", "", 0.8561),
        ("roberta-base", "rte", "lora", "2106.09685", "r=8", 0.866),
        ("roberta-base", "rte", "full", "2106.09685", "", 0.787),
        ("roberta-base", "mrpc", "full", "2106.09685", "", 0.902),
        ("roberta-base", "qqp", "lora", "2310.17513", "r=2", 0.891),
        ("roberta-base", "qqp", "lora", "2310.17513", "r=6", 0.900),
        ("roberta-base", "sst2", "lora", "2504.05343", "r=16", 0.9247),
        ("roberta-base", "mrpc", "peft:adalora", "2504.05343", "r=8", 0.8745),
        ("deberta-v3-base", "qnli", "full", "2303.10512", "", 0.9403),
        ("deberta-v3-base", "mrpc", "lora", "2303.10512", "r=2", 0.8971),
        ("deberta-v3-base", "rte", "peft:adalora", "2303.10512", "1.27M", 0.8809),
        ("openai-community/gpt2-medium", "e2e", "full", "2106.09685", "354.92M", 68.2),
        ("gpt2-medium", "e2e", "peft:prefix", "2106.09685", "0.35M", 69.7),
        ("gpt2-medium", "e2e", "lora", "2106.09685", "0.35M", 70.4),
    ],
)
def test_a_published_score_is_the_sources(model, task, method, source, settings, score):
    scores = [
        entry["score"]
        for entry in published(task, model)
        if entry["method"] == method and source in entry["source"] and settings in entry["settings"]
    ]
    assert scores == [score]


def test_the_poster_has_no_scores_for_the_tasks_it_gives_none_for():
    assert not [entry for entry in published("sst2", "roberta-base") if "poster" in entry["source"]]
    (note,) = published_notes("sst2", "roberta-base")
    assert "0.0046" in note["text"]
    assert "poster" in note["source"]
    (note,) = published_notes("qnli", "roberta-base")
    assert "6,010 MB" in note["text"]
    assert "4,334 MB" in note["text"]


@pytest.mark.parametrize("model", ["FacebookAI/roberta-base", "models/roberta-base/", "RoBERTa-base"])
def test_a_model_is_known_by_the_end_of_its_name(model):
    assert published("sst2", model) == published("sst2", "roberta-base") != []


@pytest.mark.parametrize(
    ("task", "model"), [("sst2", "roberta-large"), ("sst2", "minilm"), ("movies", "roberta-base")]
)
def test_another_model_or_task_has_no_published_figures(task, model):
    assert published(task, model) == []
    assert published_notes(task, model) == []
