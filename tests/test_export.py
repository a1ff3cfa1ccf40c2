"""An exported model gives what the model gives, for any number of images; one that does not is not written."""

import importlib.util
import json

import numpy as np
import pytest
import torch
from torch import nn
from using_fakes import SIZE, tiny_model, write_run

from mlore_edu import cli, export
from mlore_edu.errors import UserError
from mlore_edu.export import DisagreementError, check_agreement, compare, onnx_runner
from mlore_edu.reparameterization import fuse
from mlore_edu.tasks import DOLLHOUSE

TASKS = DOLLHOUSE.subset("semseg", "edge")


def tiny(name, **options):
    """Two tasks, and of the backbone the stem and the last block alone: a graph that is exported in seconds."""
    return tiny_model(f"{name}_vit_nano", TASKS, **({} if name == "tif" else {"blocks": (3,)}), **options)


MODELS = {
    "baseline": lambda: tiny("baseline"),
    "moe": lambda: tiny("moe", experts=4),
    "mlore": lambda: tiny("mlore", experts=4),
    "mlore, on the fly": lambda: fuse(tiny("mlore", experts=4), "on_the_fly"),
    "mlore released, precomposed": lambda: fuse(tiny("mlore", experts=4, variant="released"), "precomposed"),
    "taskexpert": lambda: tiny("taskexpert"),
    "tif": lambda: tiny("tif"),
}

needs_onnx = pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("onnx", "onnxruntime", "onnxscript")),
    reason="ONNX needs the extra export (onnx, onnxruntime, onnxscript)",
)


@pytest.fixture
def echo(monkeypatch):
    """In place of torch's exporter, which takes seconds: the model itself, behind a file."""

    def write(model, path):
        path.write_bytes(b"a model")
        return lambda images: model(images).predictions

    monkeypatch.setitem(export.WRITERS, "torch", write)


def run_everywhere(model, run):
    """Compare for numbers of images that the export itself does not try."""
    for batch in (2, 5):
        assert max(compare(model, run, batch).values()) <= export.TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mlore, on the fly"])
def test_a_model_becomes_an_exported_program_for_any_number_of_images(name, tmp_path):
    model = MODELS[name]()
    differences = export.export_model(model, tmp_path / "a.pt2")
    assert sorted(differences) == [1, 3]
    assert all(set(tasks) == set(TASKS.names) for tasks in differences.values())
    extra = {export.METADATA: ""}
    run_everywhere(model, torch.export.load(tmp_path / "a.pt2", extra_files=extra).module())
    assert json.loads(extra[export.METADATA])["img_size"] == list(SIZE)
    assert [path.name for path in tmp_path.iterdir()] == ["a.pt2"]


@pytest.mark.slow
@needs_onnx
@pytest.mark.parametrize("name", MODELS)
def test_every_decoder_becomes_onnx_for_any_number_of_images(name, tmp_path):
    import onnx

    model = MODELS[name]()
    differences = export.export_model(model, tmp_path / "a.onnx")
    assert max(value for tasks in differences.values() for value in tasks.values()) <= 1e-4
    run_everywhere(model, onnx_runner(tmp_path / "a.onnx"))
    content = onnx.load(tmp_path / "a.onnx")
    onnx.checker.check_model(content)
    assert [value.name for value in content.graph.input] == ["images"]
    assert [value.name for value in content.graph.output] == list(TASKS.names)
    described = {entry.key: entry.value for entry in content.metadata_props}
    assert [task["name"] for task in json.loads(described[export.METADATA])["tasks"]] == list(TASKS.names)


@pytest.mark.slow
@needs_onnx
def test_weights_too_many_for_one_file_lie_beside_it(tmp_path, monkeypatch):
    monkeypatch.setattr(export, "_LARGEST_FILE", 1000)
    model = MODELS["baseline"]()
    export.export_model(model, tmp_path / "a.onnx")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.onnx", "a.onnx.data"]
    run_everywhere(model, onnx_runner(tmp_path / "a.onnx"))
    (tmp_path / "a.onnx").unlink()
    with pytest.raises(UserError, match=r"a.onnx.data is there already"):
        export.export_model(model, tmp_path / "a.onnx")


@pytest.mark.parametrize("size", [1, 3])
def test_a_convolution_of_many_groups_is_a_matrix_product_per_group(size):
    groups, inner, outer = torch.tensor(4), 3, 5  # a number that is no int, as the number of images is in an export
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(1, 4 * inner, 6, 7, generator=generator).double()
    weight = torch.randn(4 * outer, inner, size, size, generator=generator).double()
    bias = torch.randn(4 * outer, generator=generator).double()
    for used in (bias, None):
        expected = nn.functional.conv2d(images, weight, used, padding=size // 2, groups=4)
        found = export._convolve_by_product(images, weight, used, 1, (size // 2,) * 2, 1, groups)
        torch.testing.assert_close(found, expected)
    assert export._convolve_by_product(images, weight, bias, groups=4) is NotImplemented


def test_a_stable_sort_is_top_k_of_everything():
    values = torch.randperm(12, generator=torch.Generator().manual_seed(0)).view(3, 4).float()
    for descending in (False, True):
        found = export._argsort_by_top_k(values, stable=True, descending=descending)
        assert torch.equal(found, values.argsort(dim=-1, stable=True, descending=descending))


def test_an_export_that_does_not_agree_is_not_written(tmp_path, monkeypatch):
    model = MODELS["baseline"]()

    def write_another(model, path):
        path.write_bytes(b"a model")
        return lambda images: {name: value * 1.01 for name, value in model(images).predictions.items()}

    monkeypatch.setitem(export.WRITERS, "torch", write_another)
    with pytest.raises(DisagreementError, match=r"differs from the model by 1.0e-02 of the largest \w+ at \d images?"):
        export.export_model(model, tmp_path / "a.pt2")
    assert list(tmp_path.iterdir()) == []


WRONG = {"shape": lambda value: value[:, :1], "nan": lambda value: value * np.nan, "off": lambda value: value + 1}


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
def test_a_wrong_shape_and_nan_are_disagreements_too(wrong):
    model = MODELS["baseline"]()
    with torch.no_grad():
        agreeing = compare(model, lambda images: model(images).predictions, 2)
        check_agreement({2: agreeing})
        assert set(agreeing.values()) == {0.0}
        found = compare(model, lambda images: {n: wrong(v) for n, v in model(images).predictions.items()}, 2)
    with pytest.raises(DisagreementError):
        check_agreement({2: found})


def test_the_model_itself_stays_as_it_was(tmp_path, echo):
    model = MODELS["baseline"]().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    export.export_model(model, tmp_path / "a.pt2")
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_nothing_is_overwritten_and_an_unknown_ending_is_refused(tmp_path):
    (tmp_path / "a.pt2").write_text("mine")
    with pytest.raises(UserError, match=r"a.pt2 is there already; move it away, or choose another path"):
        export.export_model(MODELS["baseline"](), tmp_path / "a.pt2")
    assert (tmp_path / "a.pt2").read_text() == "mine"
    with pytest.raises(UserError, match=r"a.bin ends neither in .pt2 nor in .onnx"):
        export.export_model(MODELS["baseline"](), tmp_path / "a.bin")


def test_missing_packages_are_named_before_anything_is_done(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    run, _ = write_run(tmp_path / "run")
    assert cli.main(["export", str(run), "--format", "onnx", "--out", str(tmp_path / "a.onnx")]) == 2
    sentence = capsys.readouterr().err
    assert sentence.endswith("install them with 'pip install onnx onnxscript onnxruntime'.\n")


def test_the_command_prints_how_far_the_two_differ(tmp_path, monkeypatch, capsys, echo):
    write_run(tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    assert cli.main(["export", "run", "--format", "torch"]) == 0
    shown = capsys.readouterr().out
    assert "1 image   3 images" in shown
    assert all(task.title in shown for task in DOLLHOUSE)
    assert "exports/run.pt2 takes normalised images (B, 3, 32, 64)" in shown
    assert (tmp_path / "exports" / "run.pt2").exists()
