"""The training loop on a task that can be computed by hand."""

import json
import os
import signal
from types import SimpleNamespace

import PIL.Image
import psutil
import pytest
import torch
import yaml
from accelerate import Accelerator
from torch import nn

from hfgen.config import DDPMConfig, VAEConfig
from hfgen.data.images import ImageData
from hfgen.figures.curves import save_class_shares
from hfgen.runs.folder import RunFolder
from hfgen.runs.record import add_row, forget_rows, read_rows
from hfgen.tasks.base import Diagnosis, Loss, Task
from hfgen.training.processes import OtherPrograms, SpeedWatch, as_found
from hfgen.training.trainer import Trainer, endless_warmups, learning_rate_factor
from hfgen.utils.errors import InterruptedTrainingError, TrainingError
from hfgen.utils.seeds import derive_seed, seed_torch


class TwoModules(Task):
    """Two scalars, each pulled towards the mean of the batch; the second only sees the first after its update."""

    saved_modules = frozenset({"first"})
    index_file = "weights.json"

    def __init__(self):
        self.networks = {name: nn.Linear(1, 1, bias=False) for name in ("first", "second")}
        for network in self.networks.values():
            nn.init.zeros_(network.weight)
        self.modules = dict(self.networks)
        self.seen = []
        self.draws = []
        self.problems = []

    def losses(self, batch):
        target = batch.images.mean()
        self.draws.append(torch.rand(1).item())
        one = torch.ones(1, 1)
        yield Loss("first", (self.modules["first"](one) - target).pow(2).sum(), {"target": target})
        self.seen.append(self.networks["first"].weight.item())
        yield Loss("second", (self.modules["second"](one) - target).pow(2).sum())

    def save(self, folder):
        weights = {name: network.weight.item() for name, network in self.networks.items()}
        (folder / self.index_file).write_text(json.dumps(weights))

    def diagnose(self):
        return Diagnosis(self.problems)


@pytest.fixture
def make_trainer(tmp_path):
    def make(task, values=(0, 255), scaler=None, **fields):
        settings = {"train_batch_size": 1, "lr_scheduler": "constant", "lr_warmup_steps": 0, "learning_rate": 0.1}
        config = DDPMConfig(dataset_name="digits", output_dir=str(tmp_path), **(settings | fields))
        images = torch.tensor(values, dtype=torch.uint8).view(-1, 1, 1, 1)
        accelerator = Accelerator(gradient_accumulation_steps=config.gradient_accumulation_steps)
        accelerator.scaler = scaler
        task.data = ImageData(images, None, None, "test", "fingerprint")
        trainer = Trainer(config, task, accelerator, RunFolder(tmp_path))
        trainer.prepare_run_folder()
        return trainer

    with as_found():
        yield make


def test_each_module_is_updated_before_the_task_resumes(make_trainer):
    task = TwoModules()
    trainer = make_trainer(task, values=[255], max_train_steps=3)
    before = []
    for _ in range(3):
        before.append(task.modules["first"].weight.item())
        trainer._optimizer_step(0.0)
        trainer.step += 1
    assert task.seen[0] != before[0]
    assert task.seen == [*before[1:], task.modules["first"].weight.item()]
    assert task.modules["second"].weight.item() == task.modules["first"].weight.item()


def test_accumulated_gradients_are_averaged(make_trainer):
    accumulated, whole = TwoModules(), TwoModules()
    one = make_trainer(accumulated, values=[0, 255], gradient_accumulation_steps=2)
    logs = one._optimizer_step(0.0)
    assert accumulated.modules["first"].weight.item() == 0.0, "the gradients of −1 and 1 cancel"
    assert logs["loss/first"].item() == pytest.approx(1.0)
    other = make_trainer(whole, values=[255, 255], gradient_accumulation_steps=2)
    other._optimizer_step(0.0)
    assert whole.modules["first"].weight.item() == pytest.approx(0.1, rel=1e-4), "one AdamW step of the learning rate"


class Game(TwoModules):
    """The second module plays against the first as it is after its update, and began before it, like an image-to-image
    network against its discriminator. It has a buffer, which every pass changes."""

    def __init__(self):
        super().__init__()
        self.networks["second"].register_buffer("memory", torch.zeros(1))
        self.remembered = []

    def losses(self, batch):
        target, one = batch.images.mean(), torch.ones(1, 1)
        memory = self.networks["second"].memory
        self.remembered.append(memory.item())
        memory += target
        played = self.modules["second"](one)
        yield Loss("first", (self.modules["first"](one) - 1 - target).pow(2).sum())
        yield Loss("second", (played - target - self.modules["first"](one).detach()).pow(2).sum())


# Under which an update is in proportion to the gradient, so that a wrong gradient makes other weights.
PROPORTIONAL = {"max_grad_norm": 1e9, "adam_epsilon": 1.0}


def test_in_a_game_many_small_passes_do_what_a_large_one_does(make_trainer):
    weights = []
    for size, passes in ((32, 1), (8, 4)):
        task = Game()
        fields = {"train_batch_size": size, "gradient_accumulation_steps": passes} | PROPORTIONAL
        trainer = make_trainer(task, values=range(0, 256, 2), **fields)
        for trainer.step in range(4):
            logs = trainer._optimizer_step(0.0)
        weights.append([network.weight.item() for network in task.networks.values()] + [logs["loss/first"].item()])
    assert weights[1][:2] == pytest.approx(weights[0][:2], rel=1e-5)
    assert weights[1][2] > weights[0][2], "means of the squares of four batches"
    assert task.remembered[0] == 0
    assert len(task.remembered) == 16


def test_a_gradient_scale_that_grows_meanwhile_changes_no_gradient(make_trainer):
    """As under fp16, where each update may change the scale of the losses after it."""
    found = []
    for scaler in (None, torch.amp.GradScaler("cpu", init_scale=4.0, growth_interval=1)):
        task = Game()
        fields = {"train_batch_size": 8, "gradient_accumulation_steps": 4} | PROPORTIONAL
        trainer = make_trainer(task, values=range(0, 256, 8), scaler=scaler, **fields)
        for _ in range(3):
            trainer._optimizer_step(0.0)
        found.append([network.weight.item() for network in task.networks.values()])
    assert scaler.get_scale() == 4 * 2**6, "which grew at each update of each module"
    assert found[1] == pytest.approx(found[0], rel=1e-5)


def test_gradients_are_clipped(make_trainer):
    task = TwoModules()
    trainer = make_trainer(task, values=[255], max_grad_norm=0.5)
    norms = []
    optimizer = trainer.optimizers["first"]
    original = optimizer.step
    optimizer.step = lambda: (norms.append(task.modules["first"].weight.grad.norm().item()), original())
    logs = trainer._optimizer_step(0.0)
    assert logs["grad_norm/first"].item() == pytest.approx(2.0)
    assert norms == [pytest.approx(0.5, rel=1e-4)]


def test_average_follows_diffusers_ema(make_trainer):
    task = TwoModules()
    trainer = make_trainer(task, values=[255])
    assert set(trainer.ema_models) == {"first"}, "modules that are not published are not averaged"
    average = torch.zeros(1, 1)
    for step in range(4):
        trainer._optimizer_step(0.0)
        trainer.step += 1
        decay = 0.0 if step == 0 else (1 + step) / (10 + step)
        average = decay * average + (1 - decay) * task.modules["first"].weight.detach()
    assert trainer.ema_models["first"].shadow_params[0].item() == pytest.approx(average.item(), rel=1e-5)
    trained = task.modules["first"].weight.item()
    with trainer._published_weights():
        assert task.modules["first"].weight.item() == pytest.approx(average.item(), rel=1e-5)
        assert not task.modules["first"].training
    assert task.modules["first"].weight.item() == trained
    assert task.modules["first"].training


def test_random_numbers_depend_on_seed_step_and_process_only(make_trainer, monkeypatch):
    first, second, other, elsewhere = TwoModules(), TwoModules(), TwoModules(), TwoModules()
    trainer = make_trainer(first)
    for trainer.step in range(3):
        trainer._optimizer_step(0.0)
    late = make_trainer(second)
    torch.rand(7)
    late.step = 2
    late._optimizer_step(0.0)
    make_trainer(other, seed=1)._optimizer_step(0.0)
    trainer = make_trainer(elsewhere)
    monkeypatch.setattr(Accelerator, "process_index", 1)
    trainer._optimizer_step(0.0)
    assert len({*first.draws, *other.draws, *elsewhere.draws}) == 5
    assert second.draws == first.draws[2:]
    assert derive_seed("step", 0, 1, 0) != derive_seed("step", 0, 0, 1) != derive_seed("step", 0, 1)


def test_what_has_gone_wrong_is_said_once_and_written_down_while_it_lasts(make_trainer, capsys):
    task = TwoModules()
    trainer = make_trainer(task)
    task.problems = ["it collapsed"]
    trainer.save_checkpoint()
    assert "hfgen: warning at step 0: it collapsed" in capsys.readouterr().err
    trainer.step = 1
    trainer.save_checkpoint()
    assert "collapsed" not in capsys.readouterr().err
    assert trainer.problems == ["it collapsed"]
    task.problems = []
    trainer.step = 2
    trainer.save_checkpoint()
    assert trainer.problems == []


class Alternating(TwoModules):
    """Updates the first module twice before the second, and draws pictures."""

    def losses(self, batch):
        for target in (0.0, 2.0):
            yield Loss(
                "first", (self.modules["first"](torch.ones(1, 1)) - target).pow(2).sum(), {"target": one(target)}
            )
        yield Loss("second", self.modules["second"](torch.ones(1, 1)).sum())

    def preview(self, num_images, seed):
        return PIL.Image.new("L", (8, 8), 10 * int(self.networks["second"].weight.item() < -0.15))

    def save_figures(self, folder):
        self.preview(1, 0).save(folder / "weights.png")

    def diagnose(self):
        return Diagnosis([], {"good": 0.25, "bad": 0.75}, {"good": 0.5, "bad": 0.5})


def one(value):
    return torch.tensor(value)


def test_a_module_that_is_updated_twice_is_logged_by_its_means(make_trainer):
    trainer = make_trainer(Alternating(), values=[255])
    logs = trainer._optimizer_step(0.0)
    assert logs["first/target"].item() == 1
    assert logs["loss/first"].item() == pytest.approx((0 + 4) / 2)
    assert trainer.unwrapped["first"].weight.item() > 0.05, "the second step follows the second loss"


def test_each_module_has_its_own_learning_rate(make_trainer, monkeypatch):
    monkeypatch.setattr(DDPMConfig, "learning_rate_of", lambda self, name: {"first": 0.3, "second": 0.05}[name])
    trainer = make_trainer(TwoModules(), values=[255])
    logs = trainer._optimizer_step(0.0)
    for name, rate in {"first": 0.3, "second": 0.05}.items():
        assert trainer.unwrapped[name].weight.item() == pytest.approx(rate, rel=1e-4), name
        assert logs[f"learning_rate/{name}"] == rate


def test_grids_of_epochs_make_a_film_and_classes_a_picture(make_trainer, tmp_path):
    """Two steps an epoch; the picture changes after the second step."""
    trainer = make_trainer(
        Alternating(), values=[9, 9], max_train_steps=8, save_images_epochs=2, sample_steps=[1], checkpointing_steps=4
    )
    trainer.run_loop()
    trainer.finish()
    assert [path.stem for path in sorted((tmp_path / "samples").iterdir())] == [
        "step-000001", "step-000004", "step-000008",
    ]  # fmt: skip
    with PIL.Image.open(tmp_path / "figures" / "training.gif") as film:
        assert film.n_frames > 1
    assert (tmp_path / "figures" / "weights.png").exists()
    assert (tmp_path / "figures" / "classes.png").exists()
    rows = read_rows(tmp_path / "classes.jsonl")
    shares = {"shares": {"good": 0.25, "bad": 0.75}, "real_shares": {"good": 0.5, "bad": 0.5}}
    assert rows == [{"step": step} | shares for step in (4, 8)], "the last one once"
    older = tmp_path / "older.jsonl"
    older.write_text("".join(json.dumps({"step": row["step"], "shares": row["shares"]}) + "\n" for row in rows))
    save_class_shares(older, tmp_path / "older.png")
    with (
        PIL.Image.open(tmp_path / "older.png") as without,
        PIL.Image.open(tmp_path / "figures" / "classes.png") as drawn,
    ):
        assert without.tobytes() != drawn.tobytes(), "there are real images beside those that are drawn"


def test_rows_of_later_steps_are_forgotten_half_ones_too(tmp_path):
    file = tmp_path / "rows.jsonl"
    for step in (1, 2, 3):
        add_row(file, {"step": step})
    with file.open("a") as half:
        half.write('{"step": 4')
    add_row(file, {"step": 3, "again": 1})
    assert read_rows(file) == [{"step": 1}, {"step": 2}, {"step": 3, "again": 1}]
    forget_rows(file, 1)
    assert read_rows(file) == [{"step": 1}]


def test_seeding_does_what_torch_does_on_this_device():
    torch.manual_seed(5)
    expected = torch.rand(3)
    seed_torch(5, torch.device("cpu"))
    assert torch.rand(3).equal(expected)


def test_metrics_have_a_line_for_every_step(make_trainer, tmp_path):
    trainer = make_trainer(TwoModules(), values=[255], max_train_steps=25, logging_steps=10)
    trainer.run_loop()
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, 26))
    assert set(rows[0]) == {
        "step",
        "loss/first",
        "first/target",
        "grad_norm/first",
        "loss/second",
        "grad_norm/second",
        "learning_rate",
    }
    assert rows[-1]["loss/first"] < rows[0]["loss/first"]


@pytest.mark.parametrize(("number", "word"), [(float("nan"), "nan"), (float("inf"), "inf")])
def test_a_loss_that_is_not_finite_stops_the_run(make_trainer, tmp_path, number, word):
    class Diverges(TwoModules):
        def losses(self, batch):
            for name, loss, _ in super().losses(batch):
                yield Loss(name, loss * (number if len(self.draws) == 14 else 1))

    trainer = make_trainer(Diverges(), max_train_steps=40, checkpointing_steps=5, logging_steps=10)
    with pytest.raises(
        TrainingError, match=rf"loss/first became {word} at step 14\. The last good checkpoint is .*step-000010"
    ):
        trainer.run_loop()
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["step-000005", "step-000010"]
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 13


def stops_by(number):
    class Stops(TwoModules):
        def losses(self, batch):
            if len(self.draws) == 2:
                os.kill(os.getpid(), number)
            yield from super().losses(batch)

    return Stops()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGTERM])
def test_a_signal_saves_at_once_and_then_does_what_it_did_before(make_trainer, tmp_path, number):
    before = signal.getsignal(number)
    trainer = make_trainer(stops_by(number), max_train_steps=40, logging_steps=1000, checkpointing_steps=1000)
    message = f"stopped by {number.name} after step 3, which is saved"
    with pytest.raises(InterruptedTrainingError, match=message) as raised:
        trainer.run_loop()
    assert isinstance(raised.value, KeyboardInterrupt), "which no handler of errors takes for one"
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-000003"]
    assert signal.getsignal(number) is before


@pytest.mark.parametrize("handler", [signal.SIG_IGN, lambda number, frame: None])
def test_a_signal_that_is_ignored_or_handled_stops_nothing(make_trainer, handler):
    before = signal.signal(signal.SIGHUP, handler)
    try:
        make_trainer(stops_by(signal.SIGHUP), max_train_steps=5).run_loop()
    finally:
        signal.signal(signal.SIGHUP, before)


def test_what_has_become_slow_is_said_once_and_changes_no_metrics(make_trainer, monkeypatch, capsys, tmp_path):
    clock = [0]
    monkeypatch.setattr("hfgen.training.processes.time.monotonic", lambda: clock[0])

    class Steady(TwoModules):
        def losses(self, batch):
            clock[0] += 1
            yield from super().losses(batch)

    class Slow(Steady):
        def losses(self, batch):
            clock[0] += 40 if len(self.draws) > 10 else 0
            yield from super().losses(batch)

    metrics = []
    for task in (Slow(), Steady()):
        make_trainer(task, max_train_steps=15, logging_steps=1).run_loop()
        metrics.append((tmp_path / "metrics.jsonl").read_text())
    assert capsys.readouterr().err.count("training has become slow") == 1
    assert metrics[0] == metrics[1]


def test_the_speed_is_that_of_the_steps_without_what_lies_between(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("hfgen.training.processes.time.monotonic", lambda: clock[0])
    watch = SpeedWatch(100)

    def steps(number, seconds):
        clock[0] += seconds
        said = watch.slower(watch.step + number)
        clock[0] += 50  # a checkpoint, a picture
        watch.begin(watch.step + number)
        return said

    assert steps(5, 5) is None, "too short to tell"
    assert steps(45, 5) is None
    assert steps(20, 10) is None, "two and a half times slower"
    assert "1 steps per second, down from 5" in steps(10, 10)
    assert steps(1, 10) is None, "once"


def test_a_time_budget_ends_the_run_and_spans_the_schedule(make_trainer, tmp_path):
    trainer = make_trainer(TwoModules(), max_train_seconds=0.5, lr_scheduler="linear", logging_steps=1)
    trainer.run_loop()
    rates = [json.loads(line)["learning_rate"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert trainer.seconds() >= 0.5
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] < 0.5 * rates[0]


@pytest.mark.parametrize("processes", [1, 2])
def test_the_learning_rate_follows_the_clock_at_each_slow_step_and_ends_near_zero(
    make_trainer, monkeypatch, tmp_path, processes
):
    """Steps of one second and a limit of 50 seconds, logged every 20 steps."""
    clock = [0.0]
    monkeypatch.setattr("hfgen.training.trainer.time.monotonic", lambda: clock[0])

    class Steady(TwoModules):
        def losses(self, batch):
            clock[0] += 1
            yield from super().losses(batch)

    trainer = make_trainer(Steady(), max_train_seconds=50, lr_scheduler="linear", logging_steps=20)
    monkeypatch.setattr(type(trainer.accelerator), "num_processes", processes)
    trainer.run_loop()
    rates = [row["learning_rate"] for row in read_rows(tmp_path / "metrics.jsonl")]
    assert rates == pytest.approx([0.1 * (1 - step / 50) for step in range(50)])


def test_the_clock_of_several_processes_is_extrapolated_between_synchronisations(make_trainer, monkeypatch):
    trainer = make_trainer(TwoModules())
    monkeypatch.setattr(type(trainer.accelerator), "num_processes", 2)
    clock = []
    for trainer.step, own in ((1, 20.0), (3, 21.0)):
        trainer._agree(own, [])
        for _ in range(3):
            trainer.step += 1
            clock.append(trainer._clock())
    assert clock == [40, 60, 80, 21.5, 22, 22.5]


def test_epochs_count_the_last_partial_batch(make_trainer):
    trainer = make_trainer(TwoModules(), values=range(10), train_batch_size=4, num_train_epochs=3)
    assert trainer.max_steps == 9


def test_learning_rate_schedules():
    def factors(name, warm_up):
        config = DDPMConfig(dataset_name="digits", output_dir="x", lr_scheduler=name, lr_warmup_steps=warm_up)
        return [learning_rate_factor(config, step, step / 10) for step in range(10)]

    assert factors("constant", 0) == [1.0] * 10
    assert factors("constant", 3) == [0.25, 0.5, 0.75, *[1.0] * 7]
    assert factors("linear", 0) == pytest.approx([1 - i / 10 for i in range(10)])
    cosine = factors("cosine", 0)
    assert cosine[0] == 1.0
    assert cosine[5] == pytest.approx(0.5)
    assert cosine == sorted(cosine, reverse=True)


def test_a_warm_up_that_outlasts_the_run_is_said(make_trainer, capsys):
    trainer = make_trainer(TwoModules(), values=range(4), num_train_epochs=2, lr_warmup_steps=9)
    trainer.run_loop()
    assert "warning: lr_warmup_steps 9 is more than the 8 steps of the run, which ends" in capsys.readouterr().err
    fields = {"dataset_name": "digits", "output_dir": "x", "kl_warmup_steps": 8, "lr_warmup_steps": 7}
    assert endless_warmups(VAEConfig(**fields), 7) == ["kl_warmup_steps 8 is more than the 7 steps of the run"]


def test_the_configuration_is_saved_resolved(make_trainer, tmp_path):
    make_trainer(TwoModules(), seed=7, resume_from_checkpoint="latest")
    saved = yaml.safe_load((tmp_path / "config.yaml").read_text())
    assert saved["seed"] == 7
    assert saved["resume_from_checkpoint"] is None
    assert DDPMConfig(**saved).seed == 7


def test_other_programs_are_told_if_they_leave_too_few_cores(monkeypatch):
    now = {"wall": 0.0, "all": 0.0, "own": 0.0}
    monkeypatch.setattr("hfgen.training.processes.time.monotonic", lambda: now["wall"])
    monkeypatch.setattr("hfgen.training.processes.time.process_time", lambda: now["own"])
    monkeypatch.setattr(psutil, "cpu_times", lambda: SimpleNamespace(user=now["all"], system=0.0))
    monkeypatch.setattr(psutil, "cpu_count", lambda: 2)
    others = OtherPrograms()
    now |= {"wall": 2.0, "all": 4.0, "own": 2.0}
    assert "other programs use 1.0 of the 2 cores. Training with 2 threads" in others.warning(threads=2)
    assert others.warning(threads=1) is None
    now |= {"all": 2.8}
    assert others.warning(threads=2) is None, "0.4 of a core is little"
    now |= {"wall": 0.2, "all": 0.4, "own": 0.0}
    assert others.warning(threads=2) is None, "too short a time"
