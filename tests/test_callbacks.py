"""The callback in real runs of the Trainer: its values are those of the saved checkpoints; training stays the same."""

import math
import os
import socket

import polars as pl
import pytest
import torch
from conftest import byte_level_tokenizer, tiny_model
from polars.testing import assert_frame_equal
from proxycast import InputError, callbacks, log_values
from proxycast.callbacks import ProxyCallback
from scored_models import OPTIONS, SOLUTIONS, of_the_workflow, with_dropout
from transformers import (
    BertConfig,
    BertForMaskedLM,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    default_data_collator,
)

NAMES = ["top5_accuracy/token_frequency", "bits_per_byte"]
KEYS = {f"proxy/{task}/{name}" for task in SOLUTIONS for name in (NAMES[0], "bits_per_byte/none")}


class Reports(TrainerCallback):
    """What TensorBoard, W&B and MLflow are told: they are callbacks, too."""

    def __init__(self):
        self.seen = []

    def on_log(self, args, state, control, logs, **given):
        self.seen.append((state.global_step, dict(logs)))


def batches(rows: int = 64) -> list[dict]:
    generator = torch.Generator().manual_seed(1)
    return [{"input_ids": ids, "labels": ids} for ids in torch.randint(300, (rows, 12), generator=generator)]


def train(folder, *own_callbacks, model=None, resume=None, tokenizer=True, **arguments) -> Trainer:
    settings = dict(
        output_dir=str(folder),
        max_steps=7,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        logging_steps=2,
        save_steps=3,
        learning_rate=1e-2,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        seed=3,
    )
    trainer = Trainer(
        model=model or with_dropout("gpt2"),
        args=TrainingArguments(**settings | arguments),
        train_dataset=batches(),
        eval_dataset=batches(4),
        data_collator=default_data_collator,
        processing_class=byte_level_tokenizer() if tokenizer else None,
        callbacks=list(own_callbacks),
    )
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def callback(**arguments) -> ProxyCallback:
    return ProxyCallback(SOLUTIONS, **{"every": 3, "proxies": NAMES, **OPTIONS, **arguments})


def logged(trainer: Trainer) -> dict[int, dict[str, float]]:
    """Step -> the proxies in the log of the run."""
    rows = [row for row in trainer.state.log_history if KEYS & row.keys()]
    assert len({row["step"] for row in rows}) == len(rows), "logged twice"
    return {row["step"]: {key: row[key] for key in KEYS} for row in rows}


def losses(trainer: Trainer) -> list[dict]:
    timing = {"train_runtime", "train_samples_per_second", "train_steps_per_second"}
    rows = [row for row in trainer.state.log_history if not KEYS & row.keys()]
    return [{key: value for key, value in row.items() if key not in timing} for row in rows]


@pytest.fixture
def tables(monkeypatch) -> list[pl.DataFrame]:
    """The token statistics from which the callback makes its values."""
    found = []
    monkeypatch.setattr(callbacks, "log_values", lambda table, *more: found.append(table) or log_values(table, *more))
    return found


@pytest.mark.parametrize(
    "arguments", [{}, pytest.param({"bf16": True}, marks=pytest.mark.slow)], ids=["float32", "autocast"]
)
def test_values_are_those_of_the_saved_checkpoints_and_training_is_the_same(arguments, tables, tmp_path):
    reports = Reports()
    trainer = train(tmp_path / "with", callback(), reports, **arguments)
    alone = train(tmp_path / "alone", **arguments)
    assert losses(trainer) == losses(alone)
    assert len(losses(alone)) == 4  # steps 2, 4 and 6, and the summary
    for name, weight in alone.model.state_dict().items():
        assert torch.equal(weight, trainer.model.state_dict()[name])
    assert list(logged(trainer)) == [3, 6, 7]
    for step, table in zip((3, 6), tables):
        saved = of_the_workflow(tmp_path / f"with/checkpoint-{step}", tmp_path / str(step))
        assert_frame_equal(table.drop("checkpoint"), saved.drop("checkpoint"), check_exact=True)
        assert table["checkpoint"][0] == f"step{step}"
        # polars adds in the order in which its threads end
        assert logged(trainer)[step] == pytest.approx(log_values(saved, NAMES), rel=1e-14)
    told = {step: logs for step, logs in reports.seen if KEYS & logs.keys()}
    assert {step: {key: logs[key] for key in KEYS} for step, logs in told.items()} == logged(trainer)


def test_with_a_tail_in_bytes_the_values_are_still_those_of_the_tail_in_tokens(tables, tmp_path):
    trainer = train(tmp_path, callback(tail_tokens=3, tail_bytes=40), max_steps=3)
    [table] = tables
    last = pl.col("position").max().over("task", "solution") - pl.col("position") < 3
    assert len(table) > len(kept := table.filter(last))
    assert logged(trainer)[3] == pytest.approx(log_values(kept, NAMES), rel=1e-14)


def test_a_resumed_run_goes_on_counting(tmp_path):
    own = callback(every=2)  # it serves several runs
    whole = train(tmp_path / "whole", own, max_steps=6)
    train(tmp_path / "first", own, max_steps=6)
    resumed = train(tmp_path / "first", own, max_steps=6, resume=str(tmp_path / "first/checkpoint-3"))
    assert list(logged(whole)) == list(logged(resumed)) == [2, 4, 6]
    for step in (2, 4, 6):
        assert logged(resumed)[step] == pytest.approx(logged(whole)[step], rel=1e-14)


class Stop(TrainerCallback):
    """Stops behind an evaluation, as EarlyStoppingCallback does."""

    def on_evaluate(self, args, state, control, **given):
        control.should_training_stop = True


def test_a_run_that_is_stopped_logs_its_last_step(tmp_path):
    trainer = train(tmp_path, callback(every=100), Stop(), eval_strategy="steps", eval_steps=4)
    assert list(logged(trainer)) == [4] and trainer.state.global_step == 4


class Break(TrainerCallback):
    def on_step_end(self, args, state, control, model, **given):
        if state.global_step == 3:
            model.transformer.h[0].mlp.c_fc.weight.data.fill_(torch.nan)


def test_a_model_that_breaks_is_a_warning_and_training_goes_on(tmp_path, caplog):
    trainer = train(tmp_path, Break(), callback(every=2), max_steps=5)
    assert trainer.state.global_step == 5 and list(logged(trainer)) == [2]
    warnings = [record.getMessage() for record in caplog.records if record.name == "proxycast.callbacks"]
    assert [text[:29] for text in warnings] == ["step 4: no proxies are logged", "step 5: no proxies are logged"]
    assert "NaN" in warnings[0]


def test_numbers_follow_the_training(tmp_path):
    """What is trained on lies in the solutions: bits per byte fall."""
    tokenizer, own = byte_level_tokenizer(), callback(every=5)
    texts = [row.prompt + row.solution for rows in SOLUTIONS.values() for row in rows]
    ids = [torch.tensor(tokenizer(text)["input_ids"]) for text in texts]
    trainer = Trainer(
        model=tiny_model("llama"),
        args=TrainingArguments(
            *(str(tmp_path),),
            max_steps=20,
            per_device_train_batch_size=1,
            learning_rate=3e-3,
            report_to=[],
            use_cpu=True,
        ),
        train_dataset=[{"input_ids": row, "labels": row} for row in ids],
        data_collator=default_data_collator,
        processing_class=tokenizer,
        callbacks=[own],
    )
    trainer.train()
    found = [values["proxy/sums/bits_per_byte/none"] for values in logged(trainer).values()]
    assert len(found) == 4 and found[-1] < found[0] and all(map(math.isfinite, found))


# Several processes


def one_of_two(rank: int, port: int, folder, queue) -> None:
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    reports = Reports()
    trainer = train(folder, callback(), reports, ddp_backend="gloo")
    queue.put((rank, logged(trainer), trainer.args.world_size))
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_log_what_the_saved_checkpoint_says(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = torch.multiprocessing.get_context("spawn")
    queue = context.Queue()
    processes = [context.Process(target=one_of_two, args=(rank, port, tmp_path / "run", queue)) for rank in range(2)]
    for process in processes:
        process.start()
    found = {rank: (values, world) for rank, values, world in (queue.get(timeout=300) for _ in processes)}
    for process in processes:
        process.join()
    assert [world for _, world in found.values()] == [2, 2]
    for values, _ in found.values():
        assert list(values) == [3, 6, 7]
        for step in (3, 6):
            saved = of_the_workflow(tmp_path / f"run/checkpoint-{step}", tmp_path / str(step))
            assert values[step] == pytest.approx(log_values(saved, NAMES), rel=1e-14)


# What is refused


@pytest.mark.parametrize(
    "arguments, said",
    [
        ({"every": 0}, "every: found 0"),
        ({"proxies": ["tempered_bits_per_byte"]}, "tempered_bits_per_byte: needs token statistics at temperatures"),
        ({"proxies": ["top6_accuracy/uniform"]}, "did you mean 'top5_accuracy/uniform'"),
        ({"tail": 5}, "tail: no option here"),
        ({"solutions": {}}, "found no solution"),
    ],
)
def test_bad_arguments_are_told_before_the_first_step(arguments, said, tmp_path):
    with pytest.raises(InputError, match=said):
        train(tmp_path, ProxyCallback(**{"solutions": SOLUTIONS, **arguments}))


def test_models_and_runs_that_cannot_be_scored(tmp_path):
    with pytest.raises(InputError, match="found no tokenizer"):
        train(tmp_path, callback(), tokenizer=False)
    size = dict(vocab_size=352, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
    with pytest.raises(InputError, match="predicts no next token"):
        train(tmp_path, callback(), model=BertForMaskedLM(BertConfig(**size)))
    with pytest.raises(InputError, match="no Trainer calls it"):
        callback(tokenizer=byte_level_tokenizer()).on_train_begin(None, None, None, model=tiny_model())
