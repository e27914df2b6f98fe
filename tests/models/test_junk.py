"""Whatever a config.json or a command line holds, the outcome is a manifest or diagnostics."""

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.models.configs import CONFIGS, FP8
from tests.models.test_manifests import OPTIONS
from tranship.models.produce import Request, produce
from tranship.models.quantize import SCHEMES
from tranship.models.registry import load_layout
from tranship.schema.check import check_manifest
from tranship.schema.diagnostics import DiagnosticError, known_codes

JUNK: list[object] = [None, True, False, 0, 1, 2, 3, 7, 64, 2**39, -1, 1.5, "x", "", [], [1], {}]
TEXTS = ["0", "1", "2", "3", "4", "8", "true", "false", "deepep", "cpu", "1,2", "3,-1", "x", ""]


def outcome(request: Request) -> None:
    try:
        manifest = produce(request)
    except DiagnosticError as error:
        found = {one.code for one in error.diagnostics}
    else:
        found = {one.code for one in check_manifest(manifest)}
        assert not found
    assert found <= set(known_codes())


@settings(
    max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.data())
def test_any_config_and_options_are_declared_or_diagnosed(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
):
    folder = tmp_path_factory.mktemp("junk", numbered=True)
    name = data.draw(st.sampled_from(sorted(CONFIGS)))
    layout = data.draw(st.sampled_from(sorted(OPTIONS)))
    config = CONFIGS[name] | data.draw(st.sampled_from([{}, FP8]))
    fields = data.draw(st.lists(st.sampled_from(sorted(config)), max_size=3, unique=True))
    config |= {field: data.draw(st.sampled_from(JUNK)) for field in fields}
    known = sorted(load_layout(layout)[0].options)
    chosen = data.draw(st.lists(st.sampled_from([*known, "none"]), max_size=4, unique=True))
    options = {option: data.draw(st.sampled_from(TEXTS)) for option in chosen}
    method = data.draw(st.sampled_from([None, *SCHEMES, "int4"]))
    path: Path = folder / "config.json"
    path.write_text(json.dumps(config))
    outcome(Request(name, str(path), layout, options, method))
