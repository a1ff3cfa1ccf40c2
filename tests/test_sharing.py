"""A saved folder gives the same model back, the Hub is only asked where it must be, and no folder runs code."""

import json
import shutil

import huggingface_hub
import pytest
import torch
import yaml
from using_fakes import SIZE, room, tiny_model, write_run

from mlore_edu import cli
from mlore_edu.decoders.mlore import MLoREModule
from mlore_edu.errors import UserError
from mlore_edu.model import DECODERS, MultiTaskModel, build_model
from mlore_edu.prediction import predict
from mlore_edu.reparameterization import fuse
from mlore_edu.sharing import CARD, CONFIG, describe, from_pretrained, model_card, run_metrics, save_pretrained
from mlore_edu.tasks import DOLLHOUSE, PASCAL_CONTEXT, TaskSet
from mlore_edu.training.checkpoint import WEIGHTS

METRICS = {"semseg": 61.25, "human_parts": 50.0, "saliency": 80.0, "normals": 20.0, "depth": 0.5, "edge": 70.0}


def same(model, other):
    """Whether two models hold the same numbers under the same names, and give the same outputs."""
    ours, theirs = model.state_dict(), other.state_dict()
    assert list(ours) == list(theirs)
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
    images = torch.randn(1, 3, *SIZE, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected, found = model(images).predictions, other(images).predictions
    return all(torch.equal(value, found[name]) for name, value in expected.items())


@pytest.mark.parametrize("decoder", DECODERS)
def test_a_saved_model_of_every_decoder_comes_back_as_it_was(decoder, tmp_path):
    model = tiny_model(f"{decoder}_vit_nano", DOLLHOUSE.subset("normals", "semseg"))
    loaded = from_pretrained(save_pretrained(model, tmp_path / "model"))
    assert not loaded.training
    assert same(model, loaded)
    assert loaded.configuration == model.configuration
    assert {path.name for path in (tmp_path / "model").iterdir()} == {WEIGHTS, CONFIG, CARD}


@pytest.mark.parametrize("mode", ["precomposed", "on_the_fly"])
def test_a_fused_model_is_saved_and_loaded_in_its_form(mode, tmp_path):
    fused = fuse(tiny_model("mlore_vit_nano"), mode)
    loaded = from_pretrained(save_pretrained(fused, tmp_path))
    assert same(fused, loaded)
    assert describe(loaded)["fused"] == mode


def test_every_option_that_was_given_is_remembered(tmp_path):
    options = {"channels": 16, "experts": 3, "k": 2, "generic_rank": None, "variant": "released"}
    options |= {"head_stride": 4, "blocks": (1, 3), "drop_path_rate": 0.2}
    model = build_model("mlore_vit_nano", DOLLHOUSE, SIZE, **options)
    loaded = from_pretrained(save_pretrained(model, tmp_path)).configuration
    assert loaded == model.configuration
    assert dict(loaded.options) == options


def test_tasks_of_ones_own_are_saved_in_full(tmp_path):
    tasks = TaskSet("Mine", (PASCAL_CONTEXT["edge"], DOLLHOUSE["semseg"]))
    model = tiny_model(tasks=tasks)
    assert from_pretrained(save_pretrained(model, tmp_path)).configuration.tasks == tasks
    assert "Say here which data" in (tmp_path / CARD).read_text()


def test_the_weights_are_read_without_running_code(tmp_path):
    save_pretrained(tiny_model(), tmp_path)
    header = (tmp_path / WEIGHTS).read_bytes()[8:200]
    assert header.startswith(b"{")  # safetensors: a table of names in JSON, then numbers


def test_nothing_is_overwritten(tmp_path):
    save_pretrained(tiny_model(), tmp_path)
    for kept in (WEIGHTS, CONFIG, CARD):
        shutil.rmtree(tmp_path / "other", ignore_errors=True)
        (tmp_path / "other").mkdir()
        (tmp_path / "other" / kept).write_text("mine")
        with pytest.raises(UserError, match=f"holds a {kept} already; choose another folder"):
            save_pretrained(tiny_model(), tmp_path / "other")
        assert [path.read_text() for path in (tmp_path / "other").iterdir()] == ["mine"]


def test_a_model_put_together_by_hand_or_fused_in_two_modes_cannot_be_described():
    model = tiny_model("mlore_vit_nano")
    with pytest.raises(UserError, match="put together by hand, so nobody could build it again; use build_model"):
        describe(MultiTaskModel(model.backbone, model.decoder, model.heads))
    names = [name for name, module in model.named_modules() if isinstance(module, MLoREModule)]
    for name, mode in zip(names, ("precomposed", "on_the_fly")):
        model.set_submodule(name, model.get_submodule(name).fuse(mode))
    with pytest.raises(UserError, match="fused in two modes at once"):
        describe(model)


def test_a_run_gives_its_last_checkpoint(tmp_path):
    run, model = write_run(tmp_path / "run")
    assert same(model, from_pretrained(run))
    shutil.rmtree(run / "checkpoints")
    with pytest.raises(UserError, match="holds no checkpoint yet; train it first with 'mlore-edu train tiny'"):
        from_pretrained(run)


def damaged(folder, **changes):
    """A saved model whose config.json says something else."""
    save_pretrained(tiny_model(), folder)
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps({**config, **changes}))
    return folder


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"format": 9, "library": "mlore_edu 7.0"}, r"newer version \(mlore_edu 7.0\); update"),
        ({"model": "mlore_vit_huge"}, "There is no model 'mlore_vit_huge'"),
        ({"img_size": 64}, "describes no model of this library"),
        ({"tasks": [{"name": "semseg"}]}, "describes no model of this library"),
        ({"options": {"channels": 8, "no_such": 1}}, "has no option 'no_such'"),
        ({"options": {"weights": "/etc/passwd"}}, "has an option 'weights', which no saved model has"),
        ({"options": {"channels": 16}}, "does not fit its model .*size mismatch"),
        ({"fused": "precomposed"}, "has nothing to fuse"),
    ],
)
def test_a_config_that_does_not_describe_its_weights_is_one_sentence(changes, words, tmp_path):
    with pytest.raises(UserError, match=words) as raised:
        from_pretrained(damaged(tmp_path / "model", **changes))
    assert "\n" not in str(raised.value)


def test_files_that_are_missing_or_damaged_are_named(tmp_path):
    with pytest.raises(UserError, match=r"holds no config.json; give the folder of a run or of a saved model"):
        from_pretrained(tmp_path)
    folder = save_pretrained(tiny_model(), tmp_path / "model")
    content = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(content[:-100])
    with pytest.raises(UserError, match=r"model.safetensors is damaged"):
        from_pretrained(folder)
    (folder / WEIGHTS).unlink()
    with pytest.raises(UserError, match=r"There is no file .*model.safetensors"):
        from_pretrained(folder)
    (folder / CONFIG).write_text("not JSON")
    with pytest.raises(UserError, match="describes no model of this library"):
        from_pretrained(folder)


def test_a_name_on_the_hub_is_fetched_file_by_file(tmp_path, monkeypatch):
    model = tiny_model()
    folder, asked = save_pretrained(model, tmp_path / "model"), []

    def fetch(repository, name, revision=None):
        asked.append((repository, name, revision))
        return str(folder / name)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fetch)
    assert same(model, from_pretrained("somebody/rooms", revision="v1"))
    assert asked == [("somebody/rooms", CONFIG, "v1"), ("somebody/rooms", WEIGHTS, "v1")]


def test_without_a_network_one_sentence_says_so(monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="There is no folder somebody/rooms, and config") as raised:
        from_pretrained("somebody/rooms")
    assert str(raised.value).endswith("check the name, or connect to the network.")


def test_a_mistyped_path_is_not_looked_for_on_the_hub(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", None)  # calling it would raise a TypeError
    (tmp_path / "runs").mkdir()
    monkeypatch.chdir(tmp_path)
    for typo in ("runs/typo", "typo", "/no/such/place", "a/b/c"):
        with pytest.raises(UserError, match=f"There is no folder {typo}; give that of a run or of a saved model"):
            from_pretrained(typo)


def test_the_card_says_what_how_well_and_under_which_terms():
    text = model_card(tiny_model(), METRICS)
    _, front, body = text.split("---\n", 2)
    assert yaml.safe_load(front)["library_name"] == "mlore-edu"
    assert "| Semantic segmentation | mIoU (higher is better) | 61.250 % |" in body
    assert "| Depth | RMSE (lower is better) | 0.500 m |" in body
    assert "not measured" not in body
    assert "rendered by the library itself" in body
    assert "32 × 64 pixels" in body
    pascal = model_card(tiny_model(tasks=PASCAL_CONTEXT))
    assert "PASCAL VOC and the labels that others added to them have terms of their own" in pascal
    assert pascal.count("| not measured |") == len(PASCAL_CONTEXT)


def test_the_command_turns_a_run_into_a_folder_that_can_be_shared(tmp_path, capsys):
    run, model = write_run(tmp_path / "run", "mlore_vit_nano")
    (run / "metrics.json").write_text(json.dumps({"iteration": 3, "metrics": METRICS, "details": {}}))
    assert run_metrics(run) == METRICS
    assert run_metrics(tmp_path / "none") is None
    assert cli.main(["export", str(run), "--out", str(tmp_path / "shared"), "--fuse"]) == 0
    assert "hf upload OWNER/NAME" in capsys.readouterr().out
    assert "61.250 %" in (tmp_path / "shared" / CARD).read_text()
    found, expected = predict(tmp_path / "shared", room()), predict(model, room())
    torch.testing.assert_close(found["depth"], expected["depth"], atol=1e-4, rtol=1e-4)
    assert cli.main(["export", str(run), "--out", str(tmp_path / "shared")]) == 2
    assert "choose another folder, or move it away" in capsys.readouterr().err
