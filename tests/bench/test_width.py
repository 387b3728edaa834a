"""The sweep over what attention keeps: models of one size, pairs of one text, a file that goes on where it stopped."""

import math
import shutil
from statistics import NormalDist

import pytest
import torch
from typer.testing import CliRunner

from mla_edu import cli
from mla_edu.bench import width
from mla_edu.bench.width import Key, Sweep
from mla_edu.models import Decoder
from mla_edu.train import run as training


@pytest.fixture
def small(monkeypatch):
    """Few windows of validation: what a test asks does not need more."""
    monkeypatch.setattr(width, "WINDOWS", 8)


@pytest.mark.parametrize("point", width.POINTS)
def test_every_model_has_as_many_parameters(point):
    whole = Decoder(width.model_of("gqa-8"))
    wanted = sum(weight.numel() for weight in whole.parameters())
    assert wanted == 2 * 256 * 128 + 128 + 4 * (2 * 128 + 4 * 128 * 128 + 3 * 128 * 344)
    found = Decoder(width.model_of(point))
    assert abs(sum(weight.numel() for weight in found.parameters()) / wanted - 1) < 0.005
    part = found.config.part(0)
    assert found.layers[0].mlp.gate_proj.weight.shape[0] != 344 or point == "gqa-8"
    assert part == width.POINTS[point]


def test_the_points_are_those_that_are_named():
    kept = {point: part.elements_per_token for point, part in width.POINTS.items()}
    assert [kept[f"gqa-{heads}"] for heads in (8, 4, 2, 1)] == [256, 128, 64, 32]
    for point, part in width.POINTS.items():
        if point.startswith("mla"):
            rank, rope = point.removeprefix("mla-").removesuffix("-unrotated").split("+")
            assert (part.kv_lora_rank, part.qk_rope_head_dim) == (int(rank), int(rope))
            assert (part.rope_theta is None) == point.endswith("unrotated")
    assert len(set(width.plan(3))) == len(width.plan(3)) == 4 + 3 * (15 + 2)


def test_without_rotation_a_layer_knows_no_order(small):
    """What d_r = 0 takes away: earlier tokens may change places, and the last one's output stays."""
    layers = {}
    for point in ("mla-48+0", "mla-48+16-unrotated", "mla-48+16"):
        model = Decoder(width.model_of(point), dtype=torch.float64)
        x = torch.randn(1, 6, 128, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        attention = model.layers[0].self_attn
        torch.nn.init.eye_(attention.o_proj.weight)
        mixed = x[:, [2, 0, 4, 1, 3, 5]]
        layers[point] = (attention(x)[:, -1] - attention(mixed)[:, -1]).abs().max().item()
    assert layers["mla-48+0"] < 1e-14 and layers["mla-48+16-unrotated"] < 1e-14 and layers["mla-48+16"] > 1e-3


def test_models_of_a_seed_see_the_same_text_and_others_do_not(small, monkeypatch):
    seen: dict[Key, list[torch.Tensor]] = {}
    draw = training.draw_windows

    def watched(tokens, num_windows, seq_len, generator):
        windows = draw(tokens, num_windows, seq_len, generator)
        seen.setdefault(current, []).append(windows)
        return windows

    monkeypatch.setattr(training, "draw_windows", watched)
    for current in (Key("gqa-2", 0, 2), Key("mla-48+0", 0, 2), Key("mla-48+0", 1, 2)):
        width.train_point(current)
    ours, theirs, other = seen.values()
    assert len(ours) == 3  # two steps, and the text for validation
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    assert not torch.equal(ours[0], ours[1])
    assert not any(torch.equal(a, b) for a, b in zip(theirs[:2], other[:2], strict=True))
    assert torch.equal(theirs[2], other[2])


def test_a_sweep_writes_after_each_training_and_goes_on_where_it_stopped(small, tmp_path, monkeypatch):
    path, done = tmp_path / width.FILE, []
    keys = [Key("gqa-8", 0, 2), Key("mla-8+16", 0, 2, 0.01)]

    def interrupt(trial):
        done.append(trial)
        assert width.read_sweep(path).trials == tuple(done)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        width.sweep(path, keys, interrupt)
    found = width.sweep(path, keys, done.append)
    assert [trial.key for trial in found.trials] == keys and found == width.read_sweep(path)
    assert done == list(found.trials) and list(tmp_path.iterdir()) == [path]
    assert found.hours == sum(trial.seconds for trial in done) / 3600
    assert all(4 < trial.loss < 7 for trial in done)  # equal chances for all bytes would cost log(256), 5.5
    assert {"torch", "python"} <= found.versions.keys() and len(found.corpus_sha256) == 64
    monkeypatch.setattr(width, "train_point", None)
    assert width.sweep(path, keys, done.append) == found and len(done) == 2


def test_a_file_of_something_else_is_refused_before_anything_is_trained(small, tmp_path, monkeypatch):
    monkeypatch.setattr(width, "train_point", None)
    path = tmp_path / width.FILE
    found = width.sweep(path, [], print)
    found.model_copy(update={"corpus_sha256": "0"}).write(path)
    with pytest.raises(ValueError, match=r"latent-width.json has corpus_sha256 0; expected that of this run"):
        width.sweep(path, [], print)
    found.model_copy(update={"versions": {"torch": "1"}}).write(path)
    with pytest.raises(ValueError, match=r"has versions \{'torch': '1'\}; expected"):
        width.sweep(path, [], print)
    path.write_text('{"machine": 3}')
    with pytest.raises(ValueError, match=r"latent-width.json at machine: "):
        width.read_sweep(path)


def test_losses_are_compared_in_pairs(tmp_path):
    machine = {"name": "a CPU", "threads": 1, "instructions": "AVX2"}
    facts = {"machine": machine, "versions": {}, "date": "", "corpus_sha256": "", "corpus_files": 1}
    values = {"gqa-8": (2.0, 2.1, 2.2), "mla-8+16": (2.5, 2.4)}
    rows = [Key(point, seed) for point, row in values.items() for seed in range(len(row))]
    trials = [{**key._asdict(), "parameters": 1, "loss": values[key.point][key.seed], "seconds": 1} for key in rows]
    trials += [{**Key("mla-8+16", 0, steps)._asdict(), "parameters": 1, "loss": 9, "seconds": 1} for steps in (2, 3)]
    found = Sweep(**facts, trials=trials)
    assert found.losses("mla-8+16") == {0: 2.5, 1: 2.4} and found.losses("mla-8+16", 3) == {0: 9.0}
    assert found.differences("mla-8+16", "gqa-8") == pytest.approx([0.5, 0.3])


def student_probability(t, degrees):
    """Of lying within t, by summing the density."""
    places = torch.linspace(-t, t, 200_001, dtype=torch.float64)
    density = math.gamma((degrees + 1) / 2) / math.gamma(degrees / 2) / math.sqrt(degrees * math.pi)
    heights = density * (1 + places**2 / degrees) ** (-(degrees + 1) / 2)
    return torch.trapezoid(heights, places).item()


@pytest.mark.parametrize("degrees", range(1, 10))
def test_quantiles_are_students(degrees):
    t = width.T_QUANTILES[degrees - 1]
    assert abs(student_probability(t, degrees) - 0.95) < 5e-5
    assert t > NormalDist().inv_cdf(0.975)


def test_an_interval_is_that_of_students_paper():
    # Student 1908, "The probable error of a mean": hours of sleep gained, dextro minus laevo: 1.58, t = 4.06.
    gained = [1.2, 2.4, 1.3, 1.3, 0.0, 1.0, 1.8, 0.8, 4.6, 1.4]
    middle, half = width.interval(gained)
    assert middle == pytest.approx(1.58) and middle / (half / width.T_QUANTILES[8]) == pytest.approx(4.06, abs=0.005)
    for values in ([1.0], [1.0] * 11):
        with pytest.raises(ValueError, match=f"values has {len(values)}; expected 2 to 10"):
            width.interval(values)


def test_few_directions_cost_and_all_cost_nothing(small, monkeypatch):
    monkeypatch.setattr(width, "RANKS", (128, 16, 1))
    trial = width.train_point(Key("gqa-8", steps=8))
    assert trial.truncated[128] == pytest.approx(trial.loss, abs=0.01)  # not exact: that text has not all bytes
    assert abs(trial.truncated[16] - trial.loss) < abs(trial.truncated[1] - trial.loss)
    assert width.train_point(Key("gqa-2", steps=1)).truncated is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--results", "/no/such"], "--results is /no/such; expected a folder that exists"),
        (["--results", ".", "--seeds", "0"], "--seeds is '0'; expected a positive integer"),
        ([], "--results is missing; expected: Folder for the file of results"),
    ],
)
def test_bad_arguments_are_refused_before_anything_runs(monkeypatch, arguments, message):
    monkeypatch.setattr(width, "sweep", None)
    result = CliRunner(env={"NO_COLOR": "1"}).invoke(cli.app, ["bench", "latent-width", *arguments])
    assert result.exit_code == 2 and message in result.stderr and result.stderr.count("\n") == 1


def test_bad_points_and_seeds_are_refused():
    with pytest.raises(ValueError, match=r"point is 'mla-47'; expected one of gqa-8, gqa-4"):
        width.model_of("mla-47")
    with pytest.raises(ValueError, match="seeds is 0; expected a positive integer"):
        width.plan(0)


def test_the_command_shows_what_the_file_holds(tmp_path, monkeypatch):
    shutil.copy(width.MEASURED / width.FILE, tmp_path)
    kept = width.read_sweep()
    asked = []
    monkeypatch.setattr(width, "sweep", lambda path, keys, note: asked.append((path, keys)) or kept)
    result = CliRunner(env={"NO_COLOR": "1"}).invoke(
        cli.app, ["bench", "latent-width", "--results", str(tmp_path), "--seeds", "2"]
    )
    assert result.exit_code == 0, result.output
    assert asked == [(tmp_path / width.FILE, width.plan(2))]
    assert "mla-48+16-unrotated" in result.stdout and f"{kept.hours:.1f} hours" in result.stdout


def test_what_came_with_the_package_is_whole():
    found = width.read_sweep()
    seeds = set(found.losses("gqa-8"))
    assert len(seeds) >= 3 and seeds == set(range(len(seeds)))
    for point in width.POINTS:
        assert set(found.losses(point)) == seeds
    sizes = {trial.point: trial.parameters for trial in found.trials}
    assert sizes == {point: width.num_parameters(width.model_of(point)) for point in width.POINTS}
    assert all(trial.truncated for trial in found.trials if trial.point == "gqa-8")
