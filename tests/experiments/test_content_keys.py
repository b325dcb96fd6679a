"""The content keys of the preset `smoke`: a change of one orphans the results that users have."""

from __future__ import annotations

import json
from pathlib import Path

from checkpointkd.experiments.context import Context
from checkpointkd.experiments.presets import smoke as smoke_preset
from checkpointkd.experiments.reproduce import EXPERIMENTS, _module
from checkpointkd.experiments.tasks import ordered

GOLDEN = Path(__file__).parents[1] / "golden" / "content_keys.json"


def test_content_keys_are_those_of_the_golden_file(smoke: Path):
    preset = smoke_preset()
    machine = json.loads((smoke / "machine.json").read_text())["auto, digits, fp32"]
    context = Context(smoke, preset, "digits", machine=machine)
    tasks = ordered(item.work for name in EXPERIMENTS for item in _module(name).needs(preset))
    computed = {context.folder(task).relative_to(smoke).as_posix() for task in tasks}
    for entry in json.loads(GOLDEN.read_text(encoding="utf-8")):
        if entry["kind"] != "TuneTask":  # the preset tunes nothing
            assert entry["folder"] in computed
            assert (smoke / entry["folder"]).exists(), entry["folder"]
