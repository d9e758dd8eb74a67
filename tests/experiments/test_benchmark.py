"""``python -m experiments benchmark``: that it runs, compares what it says, and counts right. Nothing is timed here."""

import contextlib
import io
import json
import math
from importlib.metadata import PackageNotFoundError
from math import prod

import pytest
import torch

from experiments.__main__ import main
from experiments.benchmark import contenders as benchmark_contenders
from experiments.benchmark import levels as benchmark_levels
from experiments.benchmark import packages as benchmark_packages
from experiments.benchmark import run as benchmark
from experiments.benchmark import timing as benchmark_timing
from experiments.benchmark.contenders import COMPILED, FLOOR, NORM_DEFAULT, NORM_FUSED, TORCH, Contender, our_contenders
from experiments.benchmark.levels import clipping_arguments
from experiments.benchmark.problem import SIZES, Problem
from experiments.benchmark.rows import Row, make_rows, read_rows, traffic, write_rows
from experiments.benchmark.table import BEGIN, END, FOOTNOTE, guide_table, targets, targets_table, write_targets
from experiments.benchmark.timing import Timings, peak_bytes, time_steps
from torch_clipped.clipping import CLIPPING_TYPES

SHAPES = [(100,), (10, 12), (8, 3, 3, 3)]
WINDOW, LONGEST_RUN = 250, 100  # the real ones are four times as long
assert benchmark_levels.LONGEST_RUN / benchmark_levels.WINDOW == LONGEST_RUN / WINDOW
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # while torch imports its compiler


def not_installed(package):
    raise PackageNotFoundError(package)


@pytest.fixture(autouse=True, scope="module")
def small():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SIZES, "tiny", SHAPES)
        patch.setattr(benchmark_levels, "WINDOW", WINDOW)
        patch.setattr(benchmark_packages, "version", not_installed)
        yield


def problem(dtype="float32", optimizer="sgd"):
    return Problem("tiny", dtype, optimizer, "cpu", 0)


class Run:
    """What the command leaves and prints."""

    def __init__(self, folder):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            self.code = main(
                ["benchmark", "--sizes", "tiny", "--optimizers", "sgd", "adamw", "--budget", "1e-9", "--out", str(folder)]
            )
        self.printed, self.folder, self.rows = printed.getvalue(), folder, read_rows(folder / "benchmark.csv")
        self.summary = json.loads((folder / "benchmark.json").read_text(), parse_constant=pytest.fail)


@pytest.fixture(scope="module")
def done(tmp_path_factory, small):
    return Run(tmp_path_factory.mktemp("benchmark"))


def test_every_type_has_a_row_that_clips_and_one_that_does_not(done):
    assert done.code == 0
    places = {row[:3] for row in done.rows}
    assert places == {("tiny", dtype, o) for dtype in ("float32", "bfloat16") for o in ("sgd", "adamw")}
    names = (*CLIPPING_TYPES, COMPILED)
    ours = {(name, clipped) for name in names for clipped in ("no", "yes")} - {("none", "yes")}
    for place in places:
        found = [(row.contender, row.clipped) for row in done.rows if row[:3] == place and not row.note]
        assert len(found) == len(set(found)) == len(ours) + len(TORCH)
        assert ours | {(FLOOR, "-")} <= set(found)
        assert set(TORCH) <= {name for name, _ in found}


def test_missing_packages_are_rows_that_say_so(done):
    skipped = [row for row in done.rows if row.note]
    assert {row.contender for row in skipped} == {f"{package} ({kind})" for package, kind, _ in benchmark_packages.PACKAGES}
    assert {row.note for row in skipped} == {"skipped: not installed"}
    assert all(math.isnan(row.median_seconds) and row.rounds == 0 for row in skipped)
    assert "skipped: not installed" in done.printed


def test_packages_that_fail_are_rows_that_say_why(monkeypatch):
    monkeypatch.setattr(benchmark_packages, "version", lambda package: "9.9")
    monkeypatch.setattr(benchmark_packages, "import_module", lambda name: 1 / 0)
    reasons = {
        contender.name: contender.skipped for contender in benchmark_packages.package_contenders(problem(optimizer="adam"))
    }
    assert reasons["zclip 9.9 (default)"] == "ZeroDivisionError: division by zero"
    assert reasons["torch-clip 9.9 (norm)"] == "NotImplementedError: the package has SGD only"


def test_ratios_are_those_of_the_medians(done):
    by_name = {(row.contender, row.clipped): row for row in done.rows if row[:3] == ("tiny", "float32", "adamw")}
    norm = by_name["norm", "yes"]
    for reference, ratio in (
        ((FLOOR, "-"), norm.ratio_to_floor),
        ((NORM_FUSED, "yes"), norm.ratio_to_norm_fused),
        ((NORM_DEFAULT, "yes"), norm.ratio_to_norm_default),
    ):
        assert ratio == pytest.approx(norm.median_seconds / by_name[reference].median_seconds, rel=1e-3)
    assert norm.p10_seconds <= norm.median_seconds <= norm.p90_seconds
    assert norm.rounds >= benchmark_timing.FEWEST_ROUNDS


def test_files_are_written_and_tables_printed(done):
    assert (done.folder / "benchmark.png").read_bytes().startswith(b"\x89PNG")
    assert guide_table(done.rows) in done.printed
    assert targets_table(targets(done.rows)) in done.printed
    assert len((done.folder / "benchmark_targets.csv").read_text().splitlines()) == 1 + len(targets(done.rows))
    assert done.summary["rows"] == len(done.rows)
    assert not done.summary["interrupted"]
    assert done.summary["machine"]["threads"] == torch.get_num_threads()


@pytest.mark.parametrize(("dtype", "optimizer"), [("float32", "sgd"), ("bfloat16", "adam")])
def test_every_type_clips_or_does_not_to_the_end_of_the_longest_run(dtype, optimizer):
    tiny = problem(dtype, optimizer)
    for contender in our_contenders(tiny):
        for _ in range(LONGEST_RUN):
            tiny.restore_gradients()
            contender.step()
        assert tiny.gradients_are_clipped() == (contender.clipped == "yes")
        contender.verify()


@pytest.mark.parametrize("claimed", [True, False])
@pytest.mark.parametrize("name", ["norm", "linear_rand_norm", "layer_wise", "coord_wise", "adaptive"])
def test_a_contender_that_breaks_its_promise_fails_the_run(monkeypatch, name, claimed):
    def wrong(name, problem, clipped):
        return clipping_arguments(name, problem, not clipped)

    monkeypatch.setattr(benchmark_contenders, "clipping_arguments", wrong)
    tiny = problem()
    optimizer = benchmark_contenders.clipped_optimizer(tiny, name, claimed)
    verify = benchmark_contenders.Verification(optimizer, name, claimed)
    for _ in range(20):
        tiny.restore_gradients()
        optimizer.step()
    with pytest.raises(RuntimeError, match=f"{name} clipped {0 if claimed else 20} and skipped 0 of 20 steps, but should clip"):
        verify()


def test_a_foreign_contender_that_leaves_the_gradients_fails_the_run():
    verify = benchmark_contenders.gradient_verification(problem(), lambda: None, "idle")
    with pytest.raises(RuntimeError, match="idle claims to clip, but left the gradients unchanged"):
        verify()


def test_all_contenders_share_one_state_and_weights_stay():
    tiny = problem(optimizer="adamw")
    before = [p.detach().clone() for p in tiny.parameters]
    first, second = benchmark_contenders.plain_optimizer(tiny, True), benchmark_contenders.plain_optimizer(tiny, False)
    ours = benchmark_contenders.clipped_optimizer(tiny, "norm", True)
    for optimizer in (first, second, ours):
        optimizer.step()
    for p, start in zip(tiny.parameters, before, strict=True):
        moments = {id(optimizer.state[p]["exp_avg"]) for optimizer in (first, second, ours)}
        assert len(moments) == 1
        torch.testing.assert_close(p.detach(), start, rtol=0, atol=1e-7)


def test_every_round_has_every_contender_in_changing_order():
    tiny, order = problem(), []
    contenders = [Contender(name, "-", lambda name=name: order.append(name), lambda: None) for name in "abcd"]
    timings = time_steps(tiny, contenders, 1e-9, 0)
    rounds = ["".join(order[i : i + 4]) for i in range(4, len(order), 4)]  # the first are not timed
    assert len(rounds) == benchmark_timing.FEWEST_ROUNDS == len(timings.copies)
    assert {"".join(sorted(one)) for one in rounds} == {"abcd"}
    assert len(set(rounds)) > 1
    assert [len(steps) for steps in timings.steps] == [len(rounds)] * 4


def test_traffic_counts_passes_over_the_weights():
    assert [traffic(o, False, False) for o in ("sgd", "adam", "adamw")] == [5, 7, 7]
    assert traffic("sgd", True, False) == 6
    assert traffic("adamw", True, True) == 9


def test_rows_of_known_times():
    tiny = problem(optimizer="sgd")
    numbers = 4 * sum(map(prod, SHAPES))
    names = [(FLOOR, "-"), (NORM_FUSED, "yes"), (NORM_DEFAULT, "yes"), ("none", "no"), ("norm", "no"), ("norm", "yes")]
    contenders = [Contender(*name, lambda: None, lambda: None) for name in names]
    seconds = [[1.0, 1.0, 9.0], [2.0] * 3, [4.0] * 3, [1.0] * 3, [1.5] * 3, [1.0, 3.0, 2.0]]
    rows = make_rows(tiny, contenders, Timings(seconds, [1.0, 2.0, 3.0], 10 * numbers), [0.0] * 5 + [3e6], [])
    assert [row.median_seconds for row in rows] == [1, 2, 4, 1, 1.5, 2]
    assert [row.ratio_to_floor for row in rows] == [1, 2, 4, 1, 1.5, 2]
    assert rows[-1][9:12] == (2, 1, 0.5)
    assert [row.traffic_share for row in rows] == pytest.approx([5 / 5, 7 / 10, 7 / 20, 5 / 5, 6 / 7.5, 7 / 10])
    assert rows[-1].copy_gb_per_second == pytest.approx(5e-9 * numbers)
    assert (rows[-1].peak_mb, rows[-1].gradient_mb) == (3.0, numbers / 1e6)


def row(contender, clipped, ratio, **others):
    values = {"size": "resnet18", "dtype": "float32", "optimizer": "sgd", "contender": contender, "clipped": clipped, "note": ""}
    numbers = dict.fromkeys(Row._fields[5:-1], 1.0) | {"rounds": 7, "ratio_to_floor": ratio, "gradient_mb": 10.0}
    return Row(**(values | numbers | others))


def test_table_reads_unclipped_and_clipped_ratios_from_the_file(tmp_path):
    rows = [
        *(row(FLOOR, "-", 1.0), row(NORM_FUSED, "yes", 1.756), row("none", "no", 1.0)),
        *(row("norm", "no", 1.2), row("norm", "yes", 1.444)),
        *(row("norm", "no", 3.0, size="gpt2", optimizer="adamw"), row("norm", "no", 8.0, dtype="bfloat16")),
        row("zclip (default)", "-", math.nan, note="skipped: not installed"),
    ]
    write_rows(rows, tmp_path / "rows.csv")
    assert guide_table(read_rows(tmp_path / "rows.csv")).splitlines() == [
        BEGIN,
        "|  | ResNet-18, SGD | GPT-2, AdamW |",
        "|---|---|---|",
        f"| {NORM_FUSED} | - / 1.76 | - |",
        "| `none` | 1.00 | - |",
        "| `norm` | 1.20 / 1.44 | 3.00 |",
        "| zclip (default) | - | - |",
        "",
        *FOOTNOTE.splitlines(),
        END,
    ]


def test_targets_are_met_or_not(tmp_path):
    rows = [
        row("norm", "no", 1.40, ratio_to_norm_fused=0.9),
        row("norm", "yes", 1.61, ratio_to_norm_fused=0.8, peak_mb=6.0),
        row("layer_wise", "yes", 1.7, median_seconds=0.010),
        row("layer_wise_auto", "yes", 1.9, median_seconds=0.0115),
        row("adaptive", "no", 2.5),
        row("norm", "no", 1.0, size="tiny", ratio_to_norm_fused=1.1),
        row("norm", "no", 1.0, size="many"),
        row("norm", "yes", 1.46, optimizer="adamw", ratio_to_norm_default=0.2),
    ]
    found = targets(rows)
    missed = [(t.target.split(":")[0], t.contender, t.clipped, t.bound, round(t.reached, 6)) for t in found if not t.met]
    against_floor, against_norm = "time against torch fused without clipping", "time against clip_grad_norm_ + torch fused"
    assert missed == [
        (against_norm, "norm", "no", 0.85, 0.9),
        (against_floor, "norm", "yes", 1.6, 1.61),
        ("memory of a step, in copies of the gradients", "norm", "yes", 0.5, 0.6),
        (against_floor, "layer_wise_auto", "yes", 1.7, 1.9),
        (against_floor, "adaptive", "no", 2.0, 2.5),
        ("tiny", "norm", "no", 0.6, 1.1),
        ("many", "norm", "no", 0.75, 1.0),
        (against_floor, "norm", "yes", 1.45, 1.46),
        (against_norm, "norm", "yes", 0.85, 1.0),
    ]
    assert "not met: float32 sgd, tiny: time against clip_grad_norm_ + torch fused: 0 of 1" in targets_table(found)
    write_targets(found, tmp_path / "targets.csv")
    assert (tmp_path / "targets.csv").read_text().count(",no\n") == len(missed)


def test_models_have_their_real_sizes():
    assert [(len(SIZES[name]), sum(map(prod, SIZES[name]))) for name in ("resnet18", "gpt2")] == [
        (62, 11689512),
        (148, 124439808),
    ]
    assert (len(SIZES["many"]), set(SIZES["many"])) == (1000, {(256,)})
    assert 0.95e9 < sum(map(prod, SIZES["1b"])) < 1.05e9


@pytest.mark.skipif(math.isnan(benchmark_timing.resident("VmHWM")), reason="needs /proc")
def test_peak_memory_of_a_step_is_what_it_allocates():
    tiny = problem()
    for _ in range(2):  # the second time also where the allocator kept what the first one freed
        assert 60e6 < peak_bytes(tiny, lambda: torch.ones(16_000_000)) < 80e6
        assert peak_bytes(tiny, lambda: None) < 2e6


def test_interruption_leaves_what_was_complete(tmp_path, monkeypatch, capsys):
    real, calls = benchmark.measure, []

    def measure(*arguments):
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(benchmark, "measure", measure)
    monkeypatch.setattr(benchmark, "plot", lambda *files: None)
    assert main(["benchmark", "--sizes", "tiny", "--budget", "1e-9", "--out", str(tmp_path)]) == 130
    assert {row[:3] for row in read_rows(tmp_path / "benchmark.partial.csv")} == {("tiny", "float32", "sgd")}
    assert json.loads((tmp_path / "benchmark.partial.json").read_text())["interrupted"]


def test_quick_run_writes_to_a_folder_of_its_own(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(benchmark.QUICK, "sizes", ("tiny",))
    monkeypatch.setitem(benchmark.QUICK, "optimizers", ("sgd",))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(benchmark, "plot", lambda *files: None)
    assert main(["benchmark", "--quick", "--budget", "1e-9"]) == 0
    assert (tmp_path / "results" / "quick" / "benchmark.csv").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--sizes", "tiny", "huge"], "sizes must be some of tiny, policy, many, resnet18, gpt2, 1b, got 'huge'"),
        (["--dtypes", "float64"], "dtypes must be some of float32, bfloat16, got 'float64'"),
        (["--optimizers", "lion"], "optimizers must be some of sgd, adam, adamw, got 'lion'"),
        (["--budget", "0"], "budget must be positive and finite, got 0.0"),
        (["--seed", "-1"], "seed must be at least 0 and below 2**63, got -1"),
        (["--device", "mps"], "device must be cpu or cuda, got 'mps'"),
    ],
)
def test_bad_options_are_named_with_their_values(options, message, tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["benchmark", "--out", str(tmp_path), *options])
    assert message in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_a_device_that_is_not_there_is_an_error(tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["benchmark", "--out", str(tmp_path), "--device", "cuda"])
    assert "device 'cuda' cannot be used: torch finds none" in capsys.readouterr().err


def test_an_out_that_is_a_file_is_an_error(tmp_path, capsys):
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit, match="2"):
        main(["benchmark", "--out", str(tmp_path / "file")])
    assert "out must be a folder that can be written" in capsys.readouterr().err
