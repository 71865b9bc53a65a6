from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vmmr.errors import TrainingError
from vmmr.training.state import latest_checkpoint, read_checkpoint, write_checkpoint


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        return isinstance(a, Tensor) and isinstance(b, Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and list(a) == list(b) and all(_equal(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return isinstance(b, list) and len(a) == len(b) and all(map(_equal, a, b))
    return type(a) is type(b) and (a == b or (isinstance(a, float) and math.isnan(a) and math.isnan(b)))


_LEAF = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=5),
    st.integers(0, 3).map(lambda n: torch.randn(n, 2)),
    st.just(torch.arange(3, dtype=torch.uint8)),
    st.just(torch.tensor(True)),
)
_KEY = st.one_of(st.text(max_size=4), st.integers(0, 9))
_STATE = st.recursive(
    _LEAF, lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(_KEY, inner, max_size=3)), max_leaves=12
)


@settings(max_examples=30, deadline=None)
@given(state=st.dictionaries(st.text(max_size=4), _STATE, max_size=4))
def test_what_is_written_is_read(state: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("state")
    assert _equal(state, read_checkpoint(write_checkpoint(folder, 3, state)))


def test_optimizers_come_back_to_the_last_bit(tmp_path: Path) -> None:
    for kind in (torch.optim.AdamW, torch.optim.SGD):
        ends = []
        for interrupted in (False, True):
            torch.manual_seed(0)
            layer = torch.nn.Linear(4, 3)

            def make(layer: torch.nn.Linear = layer, kind: Any = kind) -> torch.optim.Optimizer:
                options = {"momentum": 0.9} if kind is torch.optim.SGD else {"betas": (0.8, 0.95)}
                return kind([{"params": layer.parameters(), "peak": 0.1}], lr=0.1, **options)  # type: ignore[no-any-return]

            optimizer = make()
            for number in range(6):
                if interrupted and number == 3:
                    state = {
                        "layer": layer.state_dict(),
                        "optimizer": optimizer.state_dict(),
                        "rng": torch.get_rng_state(),
                    }
                    stored = read_checkpoint(write_checkpoint(tmp_path / kind.__name__, 3, state))
                    torch.rand(5)
                    layer.load_state_dict({k: torch.zeros_like(v) for k, v in layer.state_dict().items()})
                    optimizer = make()
                    layer.load_state_dict(stored["layer"])
                    optimizer.load_state_dict(stored["optimizer"])
                    torch.set_rng_state(stored["rng"])
                optimizer.zero_grad()
                layer(torch.randn(2, 4)).square().mean().backward()
                optimizer.step()
            ends.append(layer.weight.detach().clone())
        assert torch.equal(*ends)


def test_tied_and_viewed_tensors_are_written_twice(tmp_path: Path) -> None:
    whole = torch.arange(12.0).view(3, 4)
    state = {"a": whole, "b": whole.t(), "c": whole[1], "d": whole}
    assert _equal({**state, "b": whole.t().contiguous()}, read_checkpoint(write_checkpoint(tmp_path, 0, state)))


def test_the_last_two_are_kept_and_the_newest_found(tmp_path: Path) -> None:
    assert latest_checkpoint(tmp_path / "none") is None
    assert latest_checkpoint(tmp_path) is None
    for step in (5, 90, 100, 1000):
        write_checkpoint(tmp_path, step, {"step": step})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000100", "step-00001000"]
    newest = latest_checkpoint(tmp_path)
    assert newest is not None
    assert read_checkpoint(newest) == {"step": 1000}
    write_checkpoint(tmp_path, 1000, {"step": "again"})  # the same step replaces itself
    assert read_checkpoint(newest) == {"step": "again"}


def test_drafts_of_the_dead_are_neither_found_nor_kept(tmp_path: Path) -> None:
    (tmp_path / ".draft-1-00000009").mkdir()
    (tmp_path / ".draft-1-00000009" / "tensors.safetensors").write_bytes(b"half")
    assert latest_checkpoint(tmp_path) is None
    write_checkpoint(tmp_path, 1, {})
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000001"]


def test_what_json_cannot_hold_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="object at /deep/0"):
        write_checkpoint(tmp_path, 0, {"deep": [object()]})
    assert latest_checkpoint(tmp_path) is None


@pytest.mark.parametrize(
    "damage",
    ["flip", "cut", "other number", "no tensors", "no state", "empty state", "no json", "other keys", "not a dict"],
)
def test_damage_is_told(damage: str, tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path, 7, {"w": torch.randn(8), "n": 3})
    tensors, state = path / "tensors.safetensors", path / "state.json"
    data = bytearray(tensors.read_bytes())
    if damage == "flip":
        data[-1] ^= 1
        tensors.write_bytes(data)
    elif damage == "cut":
        tensors.write_bytes(data[:-4])
    elif damage == "no tensors":
        tensors.unlink()
    elif damage == "no state":
        state.unlink()
    else:
        content = {"other number": state.read_text().replace('["n", 3]', '["n", 4]')}
        content |= {"empty state": "", "no json": "{", "other keys": json.dumps({"step": 7}), "not a dict": "[1]"}
        state.write_text(content[damage])
    with pytest.raises(TrainingError, match="step-00000007") as caught:
        read_checkpoint(path)
    assert "remove its folder" in str(caught.value)
