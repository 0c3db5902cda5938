"""The training loop: textbook updates, the same bits after a kill, and a record that can be read again."""

from __future__ import annotations

import json
import math
import os
import random
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from lens.base.errors import Cancelled, InputError
from lens.training import Recipe, Record, loop, read_record, train

ROOT = Path(__file__).parents[2]
ADAM = Recipe("adam", steps=40, optimiser="adam", learning_rate=0.01, warm_up=5, schedule="cosine", clip=0.5)
SGD = Recipe("sgd", steps=40, optimiser="sgd", learning_rate=0.02, weight_decay=1e-2)
ADAMW = Recipe("adamw", steps=40, optimiser="adamw", learning_rate=0.01, weight_decay=0.1, schedule="constant")
LONG = replace(ADAM, name="long", steps=300)
RECIPES = {recipe.name: recipe for recipe in (ADAM, SGD, ADAMW)}


class Regression:
    """A small network that learns what a fixed one does; step n draws its own examples."""

    def __init__(self, width: int = 8):
        torch.manual_seed(1)
        self.module = nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 3))
        self.teacher = nn.Linear(width, 3)
        self.width = width

    def loss(self, step: int) -> dict[str, Tensor]:
        x = torch.randn(16, self.width, generator=torch.Generator().manual_seed(step))
        error = self.module(x) - self.teacher(x)
        return {"first": error[:, 0].square().mean(), "others": error[:, 1:].square().mean()}

    def parameters(self) -> list[Tensor]:
        return [parameter.detach().clone() for parameter in self.module.parameters()]


def same(left: list[Tensor], right: list[Tensor]) -> bool:
    return len(left) == len(right) and all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """The state is written after every step."""
    monkeypatch.setattr(loop, "_WRITE_EVERY", 0.0)


# -- updates --------------------------------------------------------------------------------------


def test_nesterov_momentum_is_the_textbooks():
    """v ← μv + g + λw, w ← w − η(g + λw + μv): Sutskever et al. 2013 as torch writes it, from the gradient 2(w − 3)."""
    module = nn.Module()
    module.w = nn.Parameter(torch.tensor(1.0, dtype=torch.float64))
    recipe = Recipe("by hand", steps=4, optimiser="sgd", learning_rate=0.1, momentum=0.8, weight_decay=0.05, schedule="linear")
    train(recipe, module, lambda _step: {"square": (module.w - 3) ** 2})
    w, v = 1.0, 0.0
    for step in range(4):
        gradient = 2 * (w - 3) + 0.05 * w
        v = 0.8 * v + gradient
        w -= 0.1 * (1 - step / 4) * (gradient + 0.8 * v)
    assert module.w.item() == pytest.approx(w, rel=1e-12)


@pytest.mark.parametrize("decoupled", [False, True])
def test_adam_and_adamw_are_the_papers(decoupled: bool):
    """arXiv 1412.6980, algorithm 1, and 1711.05101, algorithm 2, whose decay does not pass through the moments."""
    module = nn.Module()
    module.w = nn.Parameter(torch.tensor(1.0, dtype=torch.float64))
    kind = "adamw" if decoupled else "adam"
    recipe = Recipe("by hand", steps=5, optimiser=kind, learning_rate=0.1, weight_decay=0.3, schedule="constant")
    train(recipe, module, lambda _step: {"square": (module.w - 3) ** 2})
    w, m, v = 1.0, 0.0, 0.0
    for t in range(1, 6):
        gradient = 2 * (w - 3) + (0 if decoupled else 0.3 * w)
        w -= 0.1 * 0.3 * w if decoupled else 0
        m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
        w -= 0.1 * (m / (1 - 0.9**t)) / ((v / (1 - 0.999**t)) ** 0.5 + 1e-8)
    assert module.w.item() == pytest.approx(w, rel=1e-9)


def test_decay_spares_what_the_recipe_names_and_the_second_beta_is_the_recipes():
    """With no gradient at all the one parameter shrinks by Π(1 − rate · decay), the other does not move."""
    module = nn.Module()
    module.theta, module.w = nn.Parameter(torch.ones(2).double()), nn.Parameter(torch.ones(3).double())
    recipe = replace(ADAMW, weight_decay=0.3, undecayed=("theta",), square_momentum=0.95)
    record = train(recipe, module, lambda _step: {"none": 0 * (module.theta.sum() + module.w.sum())})
    assert module.theta.tolist() == [1.0, 1.0]
    left = math.prod(1 - 0.3 * step.learning_rate for step in record.steps)
    assert module.w.tolist() == pytest.approx([left] * 3, rel=1e-12)
    w, m, v, gradients = 1.0, 0.0, 0.0, (1.0, -2.0, 5.0)
    module.w.data.fill_(1.0)
    train(
        replace(recipe, steps=3, warm_up=0), module, lambda t: {"given": gradients[t] * module.w.sum() + 0 * module.theta.sum()}
    )
    for t, gradient in enumerate(gradients, 1):
        w -= 0.01 * 0.3 * w
        m, v = 0.9 * m + 0.1 * gradient, 0.95 * v + 0.05 * gradient**2
        w -= 0.01 * (m / (1 - 0.9**t)) / ((v / (1 - 0.95**t)) ** 0.5 + 1e-8)
    assert module.w[0].item() == pytest.approx(w, rel=1e-9)
    with pytest.raises(InputError, match="No parameter's name ends in angle"):
        train(replace(recipe, undecayed=("angle",)), module, lambda _step: {})


def test_published_schedule_of_the_three_phase_model():
    """30,000 steps, 500 of them warm-up, a cosine to a tenth of 3e-4; the rise begins one step earlier here."""
    recipe = Recipe("3pt", steps=30_000, optimiser="adamw", learning_rate=3e-4, warm_up=500, schedule="cosine", floor=0.1)
    assert recipe.rate(500) == pytest.approx(3e-4)
    assert recipe.rate(30_000) == pytest.approx(3e-5)
    assert recipe.rate(15_250) == pytest.approx(3e-4 * 0.55)
    assert sum(map(recipe.rate, range(30_000))) == pytest.approx(4.942485 + 500 * 3e-4 / 500, abs=1e-6)


def test_gradients_are_clipped_together():
    module = nn.Module()
    module.a, module.b = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(1))
    recipe = Recipe("clipped", steps=1, optimiser="sgd", learning_rate=1.0, momentum=1e-9, schedule="constant", clip=1.0)
    record = train(recipe, module, lambda _step: {"linear": 3 * module.a.sum() + 4 * module.b.sum()})
    norm = (3**2 + 3**2 + 4**2) ** 0.5
    assert record.steps[0].gradient_norm == pytest.approx(norm)
    assert torch.allclose(module.a, torch.full((2,), -3 / norm), rtol=1e-5)
    assert torch.allclose(module.b, torch.tensor([-4 / norm]), rtol=1e-5)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [0.5, 1, 1, 1, 1, 1]),
        ("linear", [0.5, 1, 1, 0.75, 0.5, 0.25]),
        ("cosine", [0.5, 1, 1, 0.853553, 0.5, 0.146447]),
    ],
)
def test_learning_rates(schedule, expected: list[float]):
    recipe = Recipe("rates", steps=6, optimiser="adam", learning_rate=2.0, warm_up=2, schedule=schedule)
    assert [recipe.rate(step) / 2 for step in range(6)] == pytest.approx(expected, abs=1e-6)
    task = Regression()
    assert [step.learning_rate for step in train(recipe, task.module, task.loss).steps] == [recipe.rate(s) for s in range(6)]


def test_only_trainable_parameters_change_and_nothing_gets_a_gradient():
    task = Regression()
    task.module[0].bias.requires_grad_(False)
    before = [p.detach().clone() for p in (*task.teacher.parameters(), task.module[0].bias)]
    weight = task.module[0].weight.detach().clone()
    with torch.no_grad():  # as a caller may have it
        record = train(ADAM, task.module, task.loss)
    assert same(before, [p.detach() for p in (*task.teacher.parameters(), task.module[0].bias)])
    assert not torch.equal(weight, task.module[0].weight)
    assert all(p.grad is None for p in (*task.teacher.parameters(), *task.module.parameters()))
    assert record.steps[-1].loss < record.steps[0].loss / 2


@pytest.mark.parametrize(
    "wrong",
    [
        {"steps": 0},
        {"warm_up": 40},
        {"warm_up": -1},
        {"learning_rate": 0.0},
        {"momentum": 1.0},
        {"weight_decay": -1.0},
        {"clip": 0.0},
        {"learning_rate": float("nan")},
        {"square_momentum": 1.0},
        {"floor": -0.1},
    ],
)
def test_impossible_recipes_are_refused(wrong: dict):
    with pytest.raises(InputError):
        replace(ADAM, **wrong)


def test_loss_that_is_not_finite_is_refused_and_leaves_the_parameters():
    task = Regression()
    before = task.parameters()
    with pytest.raises(InputError, match=r"Step 1 of adam has the loss .*nan.*smaller learning rate"):
        train(ADAM, task.module, lambda step: {"nan": task.loss(step)["first"] * float("nan")})
    assert same(before, task.parameters())


# -- records --------------------------------------------------------------------------------------


def test_record_says_what_was_done_and_can_be_read_again(tmp_path: Path):
    task, steps = Regression(), []
    record = train(ADAM, task.module, task.loss, source={"corpus": "noise"}, tokens_per_step=16, progress=steps.append)
    assert [(s.done, s.total, s.unit) for s in steps] == [(i, 40, "steps") for i in range(1, 41)]
    assert (record.recipe, record.source, record.tokens) == (ADAM, {"corpus": "noise"}, 640)
    assert record.environment["device"] == "cpu"
    assert record.environment["torch_version"]
    assert record.seconds == pytest.approx(sum(s.seconds for s in record.steps))
    first = record.steps[0]
    assert first.loss == pytest.approx(first.terms["first"] + first.terms["others"])
    fresh = Regression()
    assert first.terms == {name: term.item() for name, term in fresh.loss(0).items()}
    done = replace(record, results={"kl": [1.0, 2.0]})
    path = done.write(tmp_path / "record.jsonl")
    assert read_record(path) == done
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert lines[0]["recipe"] == {name: value for name, value in asdict(ADAM).items() if name in lines[0]["recipe"]}
    assert set(asdict(ADAM)) - set(lines[0]["recipe"]) == {"square_momentum", "floor", "undecayed"}  # not set
    assert [line["step"] for line in lines[1:-1]] == list(range(1, 41))
    assert lines[-1]["results"] == {"kl": [1.0, 2.0]}


@pytest.mark.parametrize("content", [None, "", "{}\n{}\n", "no json\n", '{"recipe": {"name": 3}}\n{}\n'])
def test_other_files_are_no_records(tmp_path: Path, content: str | None):
    path = tmp_path / "record.jsonl"
    if content is not None:
        path.write_text(content)
    with pytest.raises(InputError, match="is no record of a training"):
        read_record(path)


# -- interruptions --------------------------------------------------------------------------------


def uninterrupted(recipe: Recipe) -> tuple[Regression, Record]:
    task = Regression()
    return task, train(recipe, task.module, task.loss)


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("stop", [1, 17, 39])
def test_cancelled_training_goes_on_with_the_same_bits(tmp_path: Path, name: str, stop: int):
    recipe, calls = RECIPES[name], []
    expected, whole = uninterrupted(recipe)

    def check() -> None:
        calls.append(1)
        if len(calls) > stop:
            raise Cancelled

    task = Regression()
    with pytest.raises(Cancelled):
        train(recipe, task.module, task.loss, folder=tmp_path, check=check)
    again, asked = Regression(), []
    record = train(recipe, again.module, lambda step: asked.append(step) or again.loss(step), folder=tmp_path)
    assert asked == list(range(stop, 40))
    assert same(again.parameters(), expected.parameters())
    assert [s.terms for s in record.steps] == [s.terms for s in whole.steps]
    assert [s.gradient_norm for s in record.steps] == [s.gradient_norm for s in whole.steps]


def test_what_was_observed_is_kept_with_its_step_and_told_again(tmp_path: Path):
    task, told, calls = Regression(), [], []

    def observe(number: int) -> dict[str, list[float]]:
        return {} if number % 4 else {"bias": task.module[2].bias.tolist()}

    def check() -> None:
        calls.append(1)
        if len(calls) == 10:
            raise Cancelled

    with pytest.raises(Cancelled):
        train(ADAM, task.module, task.loss, folder=tmp_path, observe=observe, check=check)
    task = Regression()
    record = train(ADAM, task.module, task.loss, folder=tmp_path, observe=observe, watch=lambda *step: told.append(step))
    assert [number for number, _ in told] == list(range(1, 41))
    assert tuple(step for _, step in told) == record.steps
    assert [number for number, step in told if step.observed] == list(range(4, 41, 4))
    assert record.steps[-1].observed["bias"] == task.module[2].bias.tolist()
    assert read_record(tmp_path / "record.jsonl") == record
    assert "observed" not in (tmp_path / "record.jsonl").read_text().splitlines()[1]


def test_finished_training_is_read(tmp_path: Path):
    task = Regression()
    record = train(ADAM, task.module, task.loss, folder=tmp_path)
    again = Regression()

    def never(_step: int) -> dict[str, Tensor]:
        raise AssertionError("a step was done")

    assert train(ADAM, again.module, never, folder=tmp_path) == record == read_record(tmp_path / "record.jsonl")
    assert same(task.parameters(), again.parameters())


def damage(path: Path, kind: str) -> None:
    content = bytearray(path.read_bytes())
    place = {"header": 40, "facts": content.find(b"terms"), "tensor": -5}.get(kind)
    if place is not None:
        content[place] ^= 1
    path.write_bytes(content[:-50] if kind == "cut" else b"" if kind == "empty" else content)


@pytest.mark.usefixtures("often")
@pytest.mark.parametrize("kind", ["cut", "empty", "header", "facts", "tensor"])
def test_damaged_state_is_not_used(tmp_path: Path, kind: str):
    expected, _ = uninterrupted(SGD)
    task = Regression()
    train(SGD, task.module, task.loss, folder=tmp_path)
    damage(tmp_path / "state.safetensors", kind)
    again, asked = Regression(), []
    train(SGD, again.module, lambda step: asked.append(step) or again.loss(step), folder=tmp_path)
    assert asked == list(range(40))
    assert same(again.parameters(), expected.parameters())


@pytest.mark.parametrize("what", ["recipe", "source", "start", "shape"])
def test_state_of_another_training_is_refused(tmp_path: Path, what: str):
    task = Regression()
    train(SGD, task.module, task.loss, source={"corpus": "a"}, folder=tmp_path)
    other = Regression(width=9 if what == "shape" else 8)
    if what == "start":
        with torch.no_grad():
            other.module[0].weight[0, 0] += 1e-3
    before = other.parameters()
    recipe = replace(SGD, learning_rate=0.01) if what == "recipe" else SGD
    source = {"corpus": "b" if what == "source" else "a"}
    with pytest.raises(InputError, match=r"state\.safetensors holds the training .*another folder"):
        train(recipe, other.module, other.loss, source=source, folder=tmp_path)
    assert same(before, other.parameters())


CHILD = """
import sys, torch
from tests.training.test_loop import LONG, Regression
from lens.training import loop, train

loop._WRITE_EVERY = 0.0
task = Regression()
print("ready", flush=True)
train(LONG, task.module, task.loss, folder=sys.argv[1], progress=lambda step: print(step.done, flush=True))
torch.save(task.parameters(), sys.argv[1] + "/parameters.pt")
"""


def start_child(folder: Path) -> subprocess.Popen[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_WAIT_POLICY": "PASSIVE"}
    command = [sys.executable, "-c", CHILD, str(folder)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_killed_training_ends_with_the_same_bits(tmp_path: Path):
    """Three kills at random moments, each of what the former left, some while a state is being written."""
    expected, whole = uninterrupted(LONG)
    drawn, starts = random.Random(), []
    for _ in range(3):
        child = start_child(tmp_path)
        assert child.stdout is not None
        lines = [child.stdout.readline() for _ in range(drawn.randint(2, 40))]
        try:
            child.wait(drawn.uniform(0, 0.01))
        except subprocess.TimeoutExpired:
            child.kill()
        _, error = child.communicate()
        assert child.returncode == -9, error
        starts.append(int(lines[1]))
    out, error = start_child(tmp_path).communicate()
    assert error == ""
    lines = out.splitlines()
    assert (starts[0], lines[-1]) == (1, "300")
    assert int(lines[1]) > starts[-1] > 1
    assert same(torch.load(tmp_path / "parameters.pt", weights_only=True), expected.parameters())
    record = read_record(tmp_path / "record.jsonl")
    assert [s.terms for s in record.steps] == [s.terms for s in whole.steps]
    left = sorted(p.name for p in tmp_path.iterdir() if not p.name.startswith("."))
    assert left == ["parameters.pt", "record.jsonl", "state.safetensors"]
